"""The named parts of a model that another model can take over: tables, encoders, and projections of numbers.

A part's tensors are entries of the model's state dict. Names are those of the data, so that equal names of two models
mean the same: ``table/TABLE``, ``sequence_encoder/SEQUENCE``, ``event_numbers/SEQUENCE`` and ``dense_tokens``.
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
    """The part that an entry of a state dict belongs to, and its name there; empty strings where it is in none."""
    if table := table_of(key):
        return f"{_TABLE}{table}", "weight"
    for prefix, kind in _CHILDREN.items():
        if key.startswith(prefix):
            sequence, _, name = key.removeprefix(prefix).partition(".")
            return f"{kind}/{sequence}", name
    return (_DENSE, key.removeprefix(_DENSE_CHILD)) if key.startswith(_DENSE_CHILD) else ("", "")


def table_of(key: str) -> str:
    """The table whose weight an entry of a state dict is; no table's name where it is something else."""
    owner, _, kind = key.rpartition(".")
    return owner.rpartition(".")[2].removeprefix("table_") if kind == "weight" and ".table_" in f".{owner}" else ""


def part_specs(model: RankingModel) -> dict[str, PartSpec]:
    """Describes a model's parts, by name; a table's shape is that of the whole table, wherever its rows lie."""
    featurizer = model.featurizer
    specs: dict[str, PartSpec] = {}
    for part, tensors in grouped(model.state_dict()).items():
        if part.startswith(_TABLE):
            table = part.removeprefix(_TABLE)
            specs[part] = PartSpec({"weight": (featurizer.table_rows[table], featurizer.dim)}, table=table)
        else:
            reads = model.dense_names if part == _DENSE else ()
            specs[part] = PartSpec({name: tuple(tensor.shape) for name, tensor in tensors.items()}, reads=reads)
    return specs


def grouped(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The entries of a state dict by part, and by their name there; those in no part are left out."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        part, name = part_of(key)
        if part:
            parts.setdefault(part, {})[name] = tensor
    return parts


def model_memory(model: nn.Module) -> dict[str, Tensor]:
    """The entries of a state dict that lie in this process's memory as they are stored: what is read into them is set.

    Of a tensor that is spread over processes it has none.
    """
    return {name: value for name, value in model.state_dict().items() if type(value) in (Tensor, nn.Parameter)}


def write_parts(model: RankingModel, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Replaces the tensors of a model's parts, in place."""
    keys = {part_of(key): key for key in model.state_dict()}
    values = {keys[part, name]: tensor for part, tensors in parts.items() for name, tensor in tensors.items()}
    model.load_state_dict(values, strict=False)


def freeze(model: RankingModel, parts: Iterable[str]) -> None:
    """Makes training leave a model's parts as they are, statistics of dense features included."""
    frozen = set(parts)
    tables = {part.removeprefix(_TABLE) for part in frozen if part.startswith(_TABLE)}
    model.featurizer.frozen_tables |= tables  # their optimizer runs in the backward pass: they get no gradient
    for key, parameter in model.named_parameters():
        if part_of(key)[0] in frozen and not table_of(key):
            parameter.requires_grad_(False)
    if _DENSE in frozen and model.featurizer.dense is not None:
        model.featurizer.dense.frozen = True
