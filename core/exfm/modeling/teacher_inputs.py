"""Maps stored vectors of teachers, which serving looks up too, to tokens of a model.

Legend: B examples, L vectors of an entity, K width of a vector, M tokens, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor

from exfm.config.inputs import ModelInput
from exfm.interfaces.input_spec import EXAMPLE
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.teacher_input import TeacherInput, VectorHistory
from exfm.modeling.vector_table import HistoryTable

Entity = tuple[str, str]
"""Names a teacher, and the entity whose states are stored."""


class TeacherInputs(nn.Module):
    """Computes a model's tokens from stored vectors of its teachers.

    The vectors of an entity are stored once, however many components read them: as many as the longest history needs.
    They are published with the model, like a table; they are written, not trained. Embeddings of the examples come with
    the batch.

    Args:
        inputs: the inputs in the order of the experiment's file.
        rows: the number of table rows of each entity, by entity.

    Attributes:
        embedding_dims: width K of the embeddings of the examples that the model reads, by teacher.
    """

    def __init__(self, inputs: Sequence[ModelInput], rows: Mapping[str, int]) -> None:
        super().__init__()
        lengths: dict[Entity, int] = {}
        widths: dict[Entity, int] = {}
        self.embedding_dims: dict[str, int] = {}
        for entry in inputs:
            if entry.reads_embedding:
                self.embedding_dims[entry.teacher] = entry.inputs.widths[EXAMPLE]
                continue
            for entity, width in entry.inputs.widths.items():
                key = (entry.teacher, entity)
                lengths[key] = max(lengths.get(key, 0), entry.inputs.length)
                widths[key] = width
        self._keys: dict[Entity, str] = {}
        self.tables = nn.ModuleDict()
        for (teacher, entity), length in lengths.items():
            name = f"state_{teacher}/{entity}"
            self._keys[teacher, entity] = name
            self.tables[name] = HistoryTable(rows[entity], widths[teacher, entity], length)
        self.components = nn.ModuleList([entry.spec.build(entry.inputs) for entry in inputs])
        self._inputs = tuple(inputs)

    @property
    def token_names(self) -> tuple[str, ...]:
        """Returns the names of the M tokens, in order."""
        names: list[str] = []
        for number, component in enumerate(self._components()):
            names += [f"{component.name}.{number}:{k}" for k in range(component.num_tokens)]
        return tuple(names)

    def forward(self, sparse: KeyedJaggedTensor, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Maps the ids of the entities, and embeddings (B, K) of the examples by teacher, to tokens (B, M, D)."""
        histories = {key: self._history(key, sparse[key[1]]) for key in self._keys}
        tokens = []
        for entry, component in zip(self._inputs, self.components, strict=True):
            length, teacher = entry.inputs.length, entry.teacher
            if entry.reads_embedding:
                vectors = {EXAMPLE: _of_examples(embeddings[teacher])}
            else:
                vectors = {name: _first(histories[teacher, name], length) for name in entry.inputs.widths}
            tokens.append(component(vectors))
        # No copy of a single component's tokens.
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
        """Looks up the vectors of a feature that has at most a single id per example; zeros where it has no id."""
        table = self.stored()[key]
        vector_VLK, valid_VL = table.history(ids.values().long(), key[1])
        offsets = ids.offsets().long()
        # The mean of a bag of a single vector is the vector, and of an empty bag zeros.
        vector_BW = JaggedSequence(vector_VLK.flatten(1), offsets, max_length=1).mean()
        valid_BL = JaggedSequence(valid_VL.to(vector_BW.dtype), offsets, max_length=1).mean() > 0
        return VectorHistory(vector_BW.view(-1, table.length, table.width), valid_BL)


def _of_examples(embedding_BK: Tensor) -> VectorHistory:
    """Masks the examples without an embedding, whose numbers are NaN."""
    valid_B1 = ~embedding_BK.isnan().any(dim=1, keepdim=True)
    # Zeros, because a masked NaN still makes the gradient of a product NaN.
    return VectorHistory(torch.where(valid_B1, embedding_BK, 0.0).unsqueeze(1), valid_B1)


def _first(history: VectorHistory, length: int) -> VectorHistory:
    return VectorHistory(history.vector_BLK[:, :length], history.valid_BL[:, :length])
