"""A multi-layer perceptron as an exfm backbone.

Legend: B examples, N tokens, D width of a token, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, PositiveInt
from torch import Tensor

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence
from exfm.layers import ActivationName, mlp


class MLP(Backbone):
    """``representation = MLP(flatten(tokens))``: no explicit interactions; a baseline for other backbones.

    Its FLOPs are ``2 (N D h_1 + h_1 h_2 + ...)`` per example.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Example::

        backbone = MLP(MLP.Config(hidden=(64, 32)), BackboneInputs(tokens=("dense", "user", "item"), dim=16))
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 32)
    """

    name: ClassVar[str] = "mlp"

    class Config(ComponentConfig):
        """Fields of `mlp`."""

        hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), min_length=1, description="Widths of the layers; the last is the representation's."
        )
        activation: ActivationName = Field("relu", description="Follows every layer.")

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        widths = [len(inputs.tokens) * inputs.dim, *config.hidden]
        self.deep = mlp(widths, config.activation, activate_last=True)
        self.output_dim = config.hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        representation_BR: Tensor = self.deep(tokens_BND.flatten(1))
        return representation_BR
