"""Replaces the kernels of a model's blocks in training: products in fp8, and graphs that torch compiles."""

from __future__ import annotations

import torch

from exfm.config.checks import Arm
from exfm.errors import ConfigError
from exfm.layers.fp8 import MULTIPLE, fp8_problem, use_fp8
from exfm.modeling.compiled_blocks import compile_blocks
from exfm.modeling.ranking_model import RankingModel


def adapt_blocks(arm: Arm, model: RankingModel, device: torch.device) -> None:
    """Gives a model's encoders and backbone the kernels that its section asks for, in place.

    Raises:
        ConfigError: the device, or every layer of the model, has no fp8 products.
    """
    if arm.config.precision == "fp8":
        problem = fp8_problem(device)
        if problem:
            raise ConfigError(f"models.{arm.base}.precision: {problem}; allowed here: fp32, bf16")
        if not sum(map(use_fp8, model.trunk_networks())):
            raise ConfigError(
                f"models.{arm.base}.precision: fp8 needs linear layers whose widths are multiples of {MULTIPLE}, and "
                "its encoders and backbone have none; choose other widths, or bf16"
            )
    if arm.config.compile:
        compile_blocks(model.trunk_networks())
