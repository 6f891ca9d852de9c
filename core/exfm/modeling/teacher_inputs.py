"""A model's teacher inputs: the stored vectors that serving looks up, and the components that make tokens of them.

Legend: B examples, L vectors of an entity, K width of a vector, M tokens, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from exfm.config.inputs import ModelInput
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.teacher_input import TeacherInput, VectorHistory
from exfm.modeling.vector_table import HistoryTable

Entity = tuple[str, str]
"""A teacher, and the entity whose states are stored."""


class TeacherInputs(nn.Module):
    """The tokens that a model has of its teachers.

    The vectors of an entity are stored once, however many components read them: as many as the longest history asks
    for. They are a part of what is published, like a table; they are written, not trained.

    Args:
        inputs: in the order of the file.
        rows: how many table rows each entity's ids fall in, by entity.
    """

    def __init__(self, inputs: Sequence[ModelInput], rows: Mapping[str, int]) -> None:
        super().__init__()
        lengths: dict[Entity, int] = {}
        for entry in inputs:
            for entity in entry.inputs.widths:
                key = (entry.teacher, entity)
                lengths[key] = max(lengths.get(key, 0), entry.inputs.length)
        widths = {(entry.teacher, entity): width for entry in inputs for entity, width in entry.inputs.widths.items()}
        self._keys = {key: f"state_{key[0]}/{key[1]}" for key in lengths}
        self.tables = nn.ModuleDict(
            {name: HistoryTable(rows[key[1]], widths[key], lengths[key]) for key, name in self._keys.items()}
        )
        self.components = nn.ModuleList([entry.spec.build(entry.inputs) for entry in inputs])
        self._inputs = tuple(inputs)

    @property
    def token_names(self) -> tuple[str, ...]:
        """Of the M tokens, in order."""
        names: list[str] = []
        for number, component in enumerate(self._components()):
            names += [f"{component.name}.{number}:{k}" for k in range(component.num_tokens)]
        return tuple(names)

    def forward(self, sparse: KeyedJaggedTensor) -> Tensor:
        """Maps the ids of the entities to tokens (B, M, D)."""
        histories = {key: self._history(key, sparse[key[1]]) for key in self._keys}
        tokens = []
        for entry, component in zip(self._inputs, self.components, strict=True):
            length, teacher = entry.inputs.length, entry.teacher
            tokens.append(component({name: _first(histories[teacher, name], length) for name in entry.inputs.widths}))
        return torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]

    def stored(self) -> dict[Entity, HistoryTable]:
        """Returns the stored vectors, by teacher and entity."""
        tables = {}
        for key, name in self._keys.items():
            table = self.tables[name]
            assert isinstance(table, HistoryTable)
            tables[key] = table
        return tables

    def _components(self) -> list[TeacherInput]:
        return [component for component in self.components if isinstance(component, TeacherInput)]

    def _history(self, key: Entity, ids: JaggedTensor) -> VectorHistory:
        """Looks up the vectors of a feature that has at most one id per example; zeros where it has none."""
        table = self.stored()[key]
        vector_VLK, valid_VL = table.history(ids.values().long(), key[1])
        offsets = ids.offsets().long()
        vector_BW = JaggedSequence(vector_VLK.flatten(1), offsets, max_length=1).mean()
        valid_BL = JaggedSequence(valid_VL.to(vector_BW.dtype), offsets, max_length=1).mean() > 0
        return VectorHistory(vector_BW.view(-1, table.length, table.width), valid_BL)


def _first(history: VectorHistory, length: int) -> VectorHistory:
    return VectorHistory(history.vector_BLK[:, :length], history.valid_BL[:, :length])
