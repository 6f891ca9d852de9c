"""Compresses a teacher's representation and its layers' outputs to states and embeddings.

Legend: B examples, D width of a token, L width of all layers that are read, E width of a stored embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exfm.config.supervision_section import SupervisionConfig
from exfm.data.batch import Batch
from exfm.interfaces.backbone import Backbone
from exfm.interfaces.distillation_strategy import StudentOutput
from exfm.interfaces.process_group import ProcessGroup
from exfm.modeling.compression import Compressor, EmbeddingCompressor, Examples, StateCompressor, previous_examples
from exfm.modeling.labels import Labels
from exfm.modeling.layer_outputs import REPRESENTATION, LayerOutputs

_STATE, _EMBEDDING = "state_", "embedding"
"""Name the compressors: of an entity's state, as a prefix, and of the stored representation."""


@dataclass(frozen=True)
class ModelOutput(StudentOutput):
    """Holds the output of a forward pass, with the tensors that only a teacher needs.

    Attributes:
        layers: (B, ...) outputs of the backbone's layers that states are read from, by name, without gradient.
        embedding_BE: the representation as it is stored, where it is compressed.
        tokens: (B, D) tokens of the entities that have states, by name, without gradient.
        ids_BK: int64 columns of the entities whose states are read from vectors, see ``previous_examples``.
    """

    layers: Mapping[str, Tensor] = field(default_factory=dict)
    embedding_BE: Tensor | None = None
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    ids_BK: Tensor | None = None


class ReadStates(nn.Module):
    """Compresses vectors of a model to states of entities and to an embedding of the example.

    Args:
        config: the supervision of the model, with at least a state or an embedding that is compressed.
        backbone: the model's backbone.
        token_names: names of the featurizer's tokens.
        dim: D.
        tasks: the model's binary tasks.

    Raises:
        ValueError: the backbone names no such layer, or a code is wider than its vector.
    """

    def __init__(
        self,
        config: SupervisionConfig,
        backbone: Backbone,
        token_names: Sequence[str],
        dim: int,
        tasks: tuple[str, ...],
    ) -> None:
        super().__init__()
        self.dim, self.tasks = dim, tasks
        keys = {vector: f"supervision.states.{entity}.from" for entity, vector in config.read.items()}
        keys.pop(REPRESENTATION, None)
        self.layers = LayerOutputs(backbone, keys) if keys else None
        widths = {REPRESENTATION: backbone.output_dim}
        if self.layers is not None:
            widths |= self.layers.widths
        self.read = tuple(config.read)
        # All entities, because the state of each is read together with the others' tokens.
        self.tokens = {entity: token_names.index(entity) for entity in config.states} if config.read else {}
        self.compressors = nn.ModuleDict()
        for entity, vector in config.read.items():
            others = [other for other in config.states if other != entity]
            shape = (vector, widths[vector], config.state_dim, tasks)
            self.compressors[_STATE + entity] = StateCompressor(entity, others, dim, *shape)
        if config.embedding_dim is not None:
            shape = (REPRESENTATION, widths[REPRESENTATION], config.embedding_dim, tasks)
            self.compressors[_EMBEDDING] = EmbeddingCompressor(*shape)

    def forward(self, output: StudentOutput, layers_BL: Tensor | None, batch: Batch, tokens_BND: Tensor) -> ModelOutput:
        """Adds states and embedding to a forward pass, and in training the tensors that their losses need."""
        layers = self.layers.split(layers_BL) if self.layers is not None and layers_BL is not None else {}
        vectors = {REPRESENTATION: output.representation_BR, **layers}
        codes = {name: compressor(vectors) for name, compressor in self.compressors.items()}
        embedding_BE = codes.pop(_EMBEDDING, None)
        read = {name.removeprefix(_STATE): code_BK for name, code_BK in codes.items()}
        result = ModelOutput(output.representation_BR, output.logits, {**output.states, **read}, layers, embedding_BE)
        if not self.read or not torch.is_grad_enabled():
            return result
        tokens = {entity: tokens_BND[:, index].detach() for entity, index in self.tokens.items()}
        ids = [batch.event_time_us, batch.example_id, *(_ids(batch, entity) for entity in self.read)]
        return replace(result, tokens=tokens, ids_BK=torch.stack(ids, dim=1))

    def sums(self, output: ModelOutput) -> dict[str, Tensor]:
        """Returns the sums over a batch's rows that the compressors' moments are made of, by compressor."""
        vectors = {REPRESENTATION: output.representation_BR, **output.layers}
        return {name: compressor.sums(vectors) for name, compressor in self._compressors().items()}

    def losses(
        self,
        output: ModelOutput,
        labels: Labels,
        sums: Mapping[str, Tensor],
        process_group: ProcessGroup,
        counts: Sequence[int],
    ) -> list[Tensor]:
        """Returns the losses of the compressors; see ``RankingModel.state_losses``.

        The compressors of states get the rows of all processes, because an entity's examples may lie on several.
        """
        vectors = {REPRESENTATION: output.representation_BR, **output.layers}
        explained = [task for task in self.tasks if task in labels.values]
        targets = {task: labels.explained(task, output.logits[task]) for task in explained}
        examples = Examples(targets, {}, output.tokens, labels.weights, labels.rows)
        of_states = (vectors, examples)
        if output.ids_BK is not None:
            of_states = self._whole(vectors, examples, output.ids_BK, process_group, counts)
        losses: list[Tensor] = []
        for name, compressor in self._compressors().items():
            read, seen = of_states if name.startswith(_STATE) else (vectors, examples)
            losses.append(compressor.loss(read, seen, sums[name]))
        return losses

    def _whole(
        self,
        vectors: Mapping[str, Tensor],
        examples: Examples,
        ids_BK: Tensor,
        process_group: ProcessGroup,
        counts: Sequence[int],
    ) -> tuple[dict[str, Tensor], Examples]:
        """All-gathers the vectors that states are read from, and the columns of their losses."""
        # Each vector once, however many states are read from it.
        names = dict.fromkeys(self._compressors()[_STATE + entity].vector for entity in self.read)
        read = {name: vectors[name] for name in names}
        targets, weights = examples.targets, examples.weights
        columns = [*read.values(), *examples.tokens.values()]
        columns += [values_B.unsqueeze(1) for values_B in (*targets.values(), *weights.values())]
        # Taken in the order in which they were sent.
        gathered = iter(process_group.all_gather_columns(columns, counts))
        read = {name: next(gathered) for name in read}
        tokens = {entity: next(gathered) for entity in examples.tokens}
        targets = {task: next(gathered).squeeze(1) for task in targets}
        weights = {task: next(gathered).squeeze(1) for task in weights}
        # Apart from the columns, because ids are int64 and columns are floats.
        previous = previous_examples(process_group.all_gather_rows(ids_BK, counts))
        return read, Examples(targets, dict(zip(self.read, previous, strict=True)), tokens, weights)

    @property
    def exchanged_numbers(self) -> int:
        """Counts the 32-bit numbers per example that are all-gathered for ``losses``: none without states."""
        if not self.read:
            return 0
        compressors = [self._compressors()[_STATE + entity] for entity in self.read]
        widths = {compressor.vector: compressor.width for compressor in compressors}
        tokens = len(self.tokens) * self.dim
        ids = 2 * (2 + len(self.read))  # int64: time, example id, and an id per entity
        return sum(widths.values()) + tokens + ids + len(self.tasks)

    def _compressors(self) -> dict[str, Compressor]:
        return {name: module for name, module in self.compressors.items() if isinstance(module, Compressor)}


def _ids(batch: Batch, feature: str) -> Tensor:
    """Returns each example's id (B,) of a categorical feature, -1 where it is missing."""
    bags = batch.sparse[feature]
    values, lengths = bags.values().long(), bags.lengths()
    if not values.numel():
        return torch.full_like(lengths, -1, dtype=torch.int64)
    # Starts and a clamp, not a boolean mask of the lengths: a mask makes the CPU wait for the GPU to count its ids.
    starts = (lengths.cumsum(0) - lengths).clamp(max=values.numel() - 1)
    return torch.where(lengths > 0, values.index_select(0, starts), -1)
