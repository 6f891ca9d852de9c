"""Reads and writes the named model parts that another model can take over: tables, encoders, projections of numbers.

The tensors of a model part are entries of the model's state dict. Names are those of the data, so that equal names of
two models mean the same: ``table/TABLE``, ``sequence_encoder/SEQUENCE``, ``event_numbers/SEQUENCE`` and
``dense_tokens``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from exfm.interfaces.transfer_specs import PartSpec
from exfm.modeling.ranking_model import RankingModel

_TABLE = "table/"
_CHILDREN = {"encoders.sequence_": "sequence_encoder", "featurizer.event_dense.sequence_": "event_numbers"}
_DENSE, _DENSE_CHILD = "dense_tokens", "featurizer.dense."


def part_of(key: str) -> tuple[str, str]:
    """Returns the model part of a state-dict entry and its name in it; empty strings where it is in no model part."""
    if table := table_of(key):
        return f"{_TABLE}{table}", "weight"
    for prefix, kind in _CHILDREN.items():
        if key.startswith(prefix):
            sequence, _, name = key.removeprefix(prefix).partition(".")
            return f"{kind}/{sequence}", name
    return (_DENSE, key.removeprefix(_DENSE_CHILD)) if key.startswith(_DENSE_CHILD) else ("", "")


def table_of(key: str) -> str:
    """Returns the table whose weight a state-dict entry is; an empty string where the entry is something else."""
    owner, _, kind = key.rpartition(".")
    if kind == "weight" and ".table_" in f".{owner}":
        return owner.rpartition(".")[2].removeprefix("table_")
    return ""


def part_specs(model: RankingModel) -> dict[str, PartSpec]:
    """Describes each model part, by name; a table's shape is that of the whole table, not of a process's shard."""
    featurizer = model.featurizer
    specs: dict[str, PartSpec] = {}
    for part_name, tensors in grouped(model.state_dict()).items():
        if part_name.startswith(_TABLE):
            table = part_name.removeprefix(_TABLE)
            specs[part_name] = PartSpec({"weight": (featurizer.table_rows[table], featurizer.dim)}, table=table)
        else:
            reads = model.dense_names if part_name == _DENSE else ()
            specs[part_name] = PartSpec({name: tuple(tensor.shape) for name, tensor in tensors.items()}, reads=reads)
    return specs


def grouped(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups the entries of a state dict by model part, and by name in it; leaves out entries in no model part."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        part_name, name = part_of(key)
        if part_name:
            parts.setdefault(part_name, {})[name] = tensor
    return parts


def model_memory(model: nn.Module) -> dict[str, Tensor]:
    """Returns the state-dict entries that are this process's parameters and buffers: writing into them sets the model.

    Sharded tensors are left out, because a state dict has them as wrappers of a shard.
    """
    # The exact types: a subclass of Tensor, such as DTensor, is not the memory of the whole.
    return {name: value for name, value in model.state_dict().items() if type(value) in (Tensor, nn.Parameter)}


def part_entries(model: RankingModel, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Returns the tensors of model parts under the names of the model's state dict."""
    keys = {part_of(key): key for key in model.state_dict()}
    values: dict[str, Tensor] = {}
    for part_name, tensors in parts.items():
        for name, tensor in tensors.items():
            values[keys[part_name, name]] = tensor
    return values


def freeze(model: RankingModel, parts: Iterable[str]) -> None:
    """Excludes model parts from training, statistics of dense features included."""
    frozen = set(parts)
    tables = {name.removeprefix(_TABLE) for name in frozen if name.startswith(_TABLE)}
    # Tables are detached in the forward pass, because their fused optimizer steps in the backward pass, whatever
    # ``requires_grad`` says.
    model.featurizer.frozen_tables |= tables
    for key, parameter in model.named_parameters():
        if part_of(key)[0] in frozen and not table_of(key):
            parameter.requires_grad_(False)
    if _DENSE in frozen and model.featurizer.dense is not None:
        model.featurizer.dense.frozen = True
