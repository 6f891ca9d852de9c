"""What a model costs: dense parameters and forward FLOPs per example, part by part.

A training step costs about three forward passes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from exfm.data.batch import Batch
from exfm.interfaces.backbone import BackboneInputs, SequenceShape
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs
from exfm.layers.flops import count_flops, flop_counter
from exfm.modeling.ranking_model import RankingModel

PARTS = {
    "tokens": ("featurizer",),
    "sequence_encoder": ("encoders",),
    "inputs": ("inputs",),
    "backbone": ("backbone",),
    "heads": ("heads",),
    "states": ("states", "read_states"),
}
"""The parts of a model, and the children of RankingModel that they are; few have inputs, and only a teacher states."""

_TOKENS, _DIM, _EVENTS, _LONGEST, _EXAMPLES = 26, 16, 20, 50, 8
_TASKS = ("click", "conversion")
REFERENCE = f"{_TOKENS} tokens of {_DIM}, histories of {_EVENTS} events, {len(_TASKS)} tasks"
"""The input that a component's cost is shown for."""


def flops_by_part(model: RankingModel, batch: Batch) -> dict[str, float]:
    """Forward FLOPs per example of each part, counted on a batch; of what is served, so without offsets of tables."""
    offsets, model.featurizer.offsets = model.featurizer.offsets, {}
    # With gradients: the counter follows modules by them, and sharded tables have some always.
    with torch.enable_grad(), flop_counter() as counter:
        model(batch)
    model.featurizer.offsets = offsets
    counted = {path: sum(by_kernel.values()) for path, by_kernel in counter.get_flop_counts().items()}
    return {
        name: sum(_of(child, counted) for child in children) / batch.size for name, children in _parts(model).items()
    }


def _parts(model: RankingModel) -> dict[str, list[str]]:
    """The children of each part that the model has any of."""
    present = {
        part: [child for child in children if getattr(model, child) is not None] for part, children in PARTS.items()
    }
    return {part: children for part, children in present.items() if children}


def _of(child: str, counted: dict[str, int]) -> int:
    """The FLOPs of a child: its own entry, or those of its children where it has no forward pass itself."""
    path = f"{RankingModel.__name__}.{child}"
    below = [flops for name, flops in counted.items() if name.startswith(f"{path}.") and name.count(".") == 2]
    return counted.get(path, sum(below))


def parameters_by_part(model: RankingModel) -> dict[str, int]:
    """Dense parameters of each part."""
    dense = {id(parameter) for parameter in model.dense_parameters()}
    return {
        name: sum(
            parameter.numel()
            for child in children
            for parameter in model.get_submodule(child).parameters()
            if id(parameter) in dense
        )
        for name, children in _parts(model).items()
    }


def reference_cost(kind: str, component: type[Any]) -> dict[str, int] | None:
    """Dense parameters and FLOPs per example of a component with its defaults on the reference input.

    None for a kind that is not part of the forward pass, and for a component that has required fields.
    """
    if any(field.is_required() for field in component.Config.model_fields.values()):
        return None
    names = ("dense", *(f"feature{i}" for i in range(1, _TOKENS)))
    offsets = torch.arange(0, _EXAMPLES * _EVENTS + 1, _EVENTS)
    history = JaggedSequence(torch.zeros(_EXAMPLES * _EVENTS, _DIM), offsets, _LONGEST)
    tokens_BND = torch.zeros(_EXAMPLES, _TOKENS, _DIM)
    module: nn.Module
    if kind == "backbone":
        sequences = {"history": history} if component.consumes_sequences else {}
        shapes = tuple(SequenceShape(name, _LONGEST, (1,)) for name in sequences)
        module = component(component.Config(), BackboneInputs(names, _DIM, shapes, _TASKS))
        flops = count_flops(lambda: module(tokens_BND, sequences))
    elif kind == "sequence_encoder":
        module = component(component.Config(), EncoderInputs("history", _DIM, _LONGEST, names, (1,)))
        flops = count_flops(lambda: module(history, tokens_BND))
    else:
        return None
    parameters = sum(parameter.numel() for parameter in module.parameters())
    return {"dense_parameters": parameters, "flops_per_example": flops // _EXAMPLES}
