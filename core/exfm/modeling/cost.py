"""Counts dense parameters and forward FLOPs per example of each stage of a model.

A training step costs about three forward passes.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from exfm.data.batch import Batch
from exfm.interfaces.backbone import BackboneInputs, SequenceShape
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs
from exfm.layers.flops import count_flops, flop_counter
from exfm.modeling.ranking_model import RankingModel

SECTIONS = {
    "tokens": ("featurizer",),
    "sequence_encoder": ("encoders",),
    "inputs": ("inputs",),
    "backbone": ("backbone",),
    "heads": ("heads",),
    "states": ("states", "read_states"),
}
"""Names the sections of a model, and the children of RankingModel in each.

Few models have inputs, and only teachers have states.
"""

# Near the shape of the public click logs (Criteo: 26 categorical features); costs compare components, not data sets.
_TOKENS, _DIM, _EVENTS, _LONGEST, _EXAMPLES = 26, 16, 20, 50, 8
_TASKS = ("click", "conversion")
REFERENCE = f"{_TOKENS} tokens of {_DIM}, histories of {_EVENTS} events, {len(_TASKS)} tasks"
"""Describes the input that a component's cost is shown for."""


class FlopsPerExample:
    """Counts the FLOPs per example of a model: once for a model without histories, whose examples all cost the same.

    Args:
        examples: bounds the examples that are counted.
    """

    def __init__(self, model: RankingModel, examples: int) -> None:
        self._model, self._examples = model, examples
        self._constant: dict[str, float] = {}

    def count(self, batch: Batch) -> dict[str, float]:
        """Returns the FLOPs per example of a batch, by section."""
        if self._constant:
            return self._constant
        counted = flops_by_section(self._model, batch.select(torch.arange(min(batch.size, self._examples))))
        if not batch.sequences:
            self._constant = counted
        return counted


def flops_by_section(model: RankingModel, batch: Batch) -> dict[str, float]:
    """Counts the forward FLOPs per example of each section on a batch, without offsets of tables, as it is served."""
    offsets, model.featurizer.offsets = model.featurizer.offsets, {}
    # torch.compile gives a function up for good that it first sees inside a counter. Only for models that are compiled,
    # because the import of the compiler takes seconds.
    eager = torch.compiler.set_stance("force_eager") if model.compiled else nullcontext()
    # With gradients: the counter follows modules by them, and sharded tables have some always.
    with eager, torch.enable_grad(), flop_counter() as counter:
        model(batch)
    model.featurizer.offsets = offsets
    flops_by_path: dict[str, int] = {}
    for path, by_kernel in counter.get_flop_counts().items():
        flops_by_path[path] = sum(by_kernel.values())
    result: dict[str, float] = {}
    for section, children in _children_by_section(model).items():
        result[section] = sum(_child_flops(child, flops_by_path) for child in children) / batch.size
    return result


def _children_by_section(model: RankingModel) -> dict[str, list[str]]:
    """Lists the children of each section that the model has; leaves out sections without any."""
    result: dict[str, list[str]] = {}
    for section, children in SECTIONS.items():
        present = [child for child in children if getattr(model, child) is not None]
        if present:
            result[section] = present
    return result


def _child_flops(child: str, flops_by_path: dict[str, int]) -> int:
    """Returns the FLOPs of a child: its entry, or the sum of its children's where it has no forward pass itself."""
    path = f"{RankingModel.__name__}.{child}"
    below = [flops for name, flops in flops_by_path.items() if name.startswith(f"{path}.") and name.count(".") == 2]
    return flops_by_path.get(path, sum(below))


def parameters_by_section(model: RankingModel) -> dict[str, int]:
    """Counts the dense parameters of each section."""
    dense = set(map(id, model.dense_parameters()))
    result: dict[str, int] = {}
    for section, children in _children_by_section(model).items():
        result[section] = 0
        for child in children:
            for parameter in model.get_submodule(child).parameters():
                if id(parameter) in dense:
                    result[section] += parameter.numel()
    return result


def reference_cost(kind: str, component: type[Any]) -> dict[str, int] | None:
    """Counts dense parameters and FLOPs per example of a component with its defaults on the reference input.

    Returns None for a kind that is not in the forward pass, and for a component that has required fields.
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
