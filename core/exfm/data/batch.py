"""Defines Batch: examples as tensors, with selection of rows and features.

Legend: B examples, F dense features, W width of a vector, E events of a sequence, C id fields and G dense fields of an
event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor

from exfm.mappings import map_values, take_rows

ROW_WEIGHT = ""
"""Names the weights of rows among those by task; no task has an empty name."""


@dataclass(frozen=True)
class SequenceBatch:
    """Histories of B examples: table rows (E, C) of their ids, and numbers (E, G), with offsets (B + 1,).

    Where the stream has times of events, ``ages_E`` are whole seconds from each event to its example, int64.
    """

    ids_EC: Tensor
    dense_EG: Tensor
    offsets: Tensor
    ages_E: Tensor | None = None

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> SequenceBatch:
        """Maps every tensor."""
        ages_E = None if self.ages_E is None else function(self.ages_E)
        return SequenceBatch(function(self.ids_EC), function(self.dense_EG), function(self.offsets), ages_E)

    def select(self, index: Tensor) -> SequenceBatch:
        """Selects the histories of some examples, in the order of ``index``."""
        events, lengths = _jagged_positions(self.offsets, index)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        ages_E = None if self.ages_E is None else self.ages_E[events]
        return SequenceBatch(self.ids_EC[events], self.dense_EG[events], offsets, ages_E)

    def slice(self, start: int, stop: int) -> SequenceBatch:
        """Slices the histories of successive examples, as views of the events."""
        offsets = self.offsets[start : stop + 1]
        first, last = int(offsets[0]), int(offsets[-1])
        ages_E = None if self.ages_E is None else self.ages_E[first:last]
        return SequenceBatch(self.ids_EC[first:last], self.dense_EG[first:last], offsets - first, ages_E)


@dataclass(frozen=True)
class Batch:
    """B examples.

    Attributes:
        example_id: (B,) int64.
        event_time_us: (B,) int64, microseconds since 1970, UTC.
        group: (B,) int64, a hash of the schema's group column (of the example id where there is none).
        dense_BF: (B, F) float32, the dense features in the schema's order, transformed.
        sparse: categorical and multi-valued features by name; values are table rows. Where the ids of some feature
            have weights, all features have weights, with the sum 1 or 0 in each bag.
        sequences: histories by name.
        labels: (B,) float32 by task: 0, 1, or NaN where the label is not known.
        oracle: (B,) float32 true probability by task, on simulated streams.
        embeddings: (B, K) float32 by teacher, its embedding of each example; NaN where it has none. Of a model that
            reads them as input, and joined after the batch has been cut.
        weights: (B,) float32 by task, the weight of each example with its label; under ``ROW_WEIGHT`` that of its row
            alone. Without an entry each weighs 1.
        vectors: (B, W) float32 by name, each feature of its width; a row of NaN where the vector is missing.
    """

    example_id: Tensor
    event_time_us: Tensor
    group: Tensor
    dense_BF: Tensor
    sparse: KeyedJaggedTensor
    sequences: Mapping[str, SequenceBatch]
    labels: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor]
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Returns B, the number of examples."""
        return self.example_id.shape[0]

    def to(self, device: torch.device, non_blocking: bool = False) -> Batch:
        """Copies the examples to a device; returns the batch itself where it is on the device already.

        Args:
            non_blocking: whether to return before the copies are complete, where they are from page-locked memory.
        """
        if self.example_id.device == device:
            return self
        sparse = self.sparse.to(device, non_blocking=non_blocking)
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking), sparse)

    def pin_memory(self) -> Batch:
        """Copies the examples to page-locked memory, from which a GPU copies while it computes."""
        return self._map(Tensor.pin_memory, self.sparse.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory of all tensors until a stream of their device has passed this point."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self.sparse.record_stream(stream)
        self._map(record, self.sparse)

    def _map(self, function: Callable[[Tensor], Tensor], sparse: KeyedJaggedTensor) -> Batch:
        """Maps every tensor but the sparse features."""
        return Batch(
            function(self.example_id),
            function(self.event_time_us),
            function(self.group),
            function(self.dense_BF),
            sparse,
            {name: sequence.map_tensors(function) for name, sequence in self.sequences.items()},
            map_values(function, self.labels),
            map_values(function, self.oracle),
            map_values(function, self.embeddings),
            map_values(function, self.weights),
            map_values(function, self.vectors),
        )

    def only(self, features: frozenset[str], dense: Tensor) -> Batch:
        """Selects features of the examples.

        Args:
            features: names of the sparse features, histories and vectors to keep.
            dense: columns of the dense features to keep.
        """
        keys = self.sparse.keys()
        kept = [position for position, key in enumerate(keys) if key in features]
        sparse, dense_BF = self.sparse, self.dense_BF
        # Nothing is copied where all features are kept: most models see every feature.
        if len(kept) < len(keys):
            sparse = sparse.permute(kept)
        if dense.numel() != dense_BF.shape[1]:
            dense_BF = dense_BF[:, dense]
        sequences = {name: sequence for name, sequence in self.sequences.items() if name in features}
        vectors = {name: vector_BW for name, vector_BW in self.vectors.items() if name in features}
        return replace(self, dense_BF=dense_BF, sparse=sparse, sequences=sequences, vectors=vectors)

    def without_id_weights(self) -> Batch:
        """Drops the weights of ids, for a model whose features have none."""
        sparse = self.sparse
        if sparse.weights_or_none() is None:
            return self
        bare = KeyedJaggedTensor(
            keys=sparse.keys(), values=sparse.values(), lengths=sparse.lengths(), stride=sparse.stride()
        )
        return replace(self, sparse=bare)

    def bags_only(self, features: frozenset[str]) -> Batch:
        """Empties the histories, and all sparse features but the named ones."""
        keys, lengths = self.sparse.keys(), self.sparse.lengths().view(-1, self.size)
        # A factor of 0 or 1 per key: keys stay, because the model looks up every key, and get empty bags.
        kept = torch.tensor([key in features for key in keys], device=lengths.device)
        values = [self.sparse[key].values() for key in keys if key in features]
        weights = None
        if (all_weights := self.sparse.weights_or_none()) is not None:
            weights = torch.cat([all_weights[:0], *(self.sparse[key].weights() for key in keys if key in features)])
        sparse = KeyedJaggedTensor(
            keys=keys,
            # The empty slice gives dtype and device where no key is kept.
            values=torch.cat([self.sparse.values()[:0], *values]),
            lengths=(lengths * kept.unsqueeze(1)).flatten(),
            stride=self.size,
            weights=weights,
        )
        empty: dict[str, SequenceBatch] = {}
        for name, sequence in self.sequences.items():
            empty[name] = replace(sequence.slice(0, 0), offsets=torch.zeros_like(sequence.offsets))
        return replace(self, sparse=sparse, sequences=empty)

    def select(self, index: Tensor) -> Batch:
        """Selects examples, in the order of ``index`` (int64)."""
        return Batch(
            example_id=self.example_id[index],
            event_time_us=self.event_time_us[index],
            group=self.group[index],
            dense_BF=self.dense_BF[index],
            sparse=_select_sparse(self.sparse, index),
            sequences={name: sequence.select(index) for name, sequence in self.sequences.items()},
            labels=take_rows(self.labels, index),
            oracle=take_rows(self.oracle, index),
            embeddings=take_rows(self.embeddings, index),
            weights=take_rows(self.weights, index),
            vectors=take_rows(self.vectors, index),
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Slices successive examples; most tensors are views, and sparse values and lengths are copies."""
        rows = slice(start, stop)
        return Batch(
            example_id=self.example_id[rows],
            event_time_us=self.event_time_us[rows],
            group=self.group[rows],
            dense_BF=self.dense_BF[rows],
            sparse=_slice_sparse(self.sparse, start, stop),
            sequences={name: sequence.slice(start, stop) for name, sequence in self.sequences.items()},
            labels=take_rows(self.labels, rows),
            oracle=take_rows(self.oracle, rows),
            embeddings=take_rows(self.embeddings, rows),
            weights=take_rows(self.weights, rows),
            vectors=take_rows(self.vectors, rows),
        )


def _slice_sparse(sparse: KeyedJaggedTensor, start: int, stop: int) -> KeyedJaggedTensor:
    """Slices rows ``start`` to ``stop`` of every key."""
    keys, size = sparse.keys(), sparse.stride()
    bags = torch.arange(len(keys)) * size
    # A single read of the offsets, because each tolist on a GPU waits for all work in flight.
    ends = sparse.offsets()[torch.stack([bags + start, bags + stop]).to(sparse.device())].tolist()
    values = [sparse.values()[first:last] for first, last in zip(*ends, strict=True)]
    weights = None
    if (all_weights := sparse.weights_or_none()) is not None:
        weights = torch.cat([all_weights[:0], *(all_weights[first:last] for first, last in zip(*ends, strict=True))])
    # Contiguous, because collectives send the memory as it is.
    lengths = sparse.lengths().view(len(keys), size)[:, start:stop].contiguous().flatten()
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([sparse.values()[:0], *values]),
        lengths=lengths,
        stride=stop - start,
        # Without it, the first lookup of a key sums all lengths.
        length_per_key=[key_values.numel() for key_values in values],
        weights=weights,
    )


def _select_sparse(sparse: KeyedJaggedTensor, index: Tensor) -> KeyedJaggedTensor:
    """Selects the rows ``index`` of every key, in order."""
    keys, weights = sparse.keys(), sparse.weights_or_none()
    if not keys:
        return KeyedJaggedTensor(keys=[], values=sparse.values(), lengths=sparse.lengths()[:0], stride=index.numel())
    lengths = sparse.lengths().view(len(keys), sparse.stride())
    # Where every bag holds a single id, as with categorical features without nulls, values are a dense matrix.
    if sparse.values().numel() == lengths.numel() and bool((lengths == 1).all()):
        values = sparse.values().view(lengths.shape)[:, index].flatten()
        if weights is not None:
            weights = weights.view(lengths.shape)[:, index].flatten()
        ones = torch.ones_like(values, dtype=lengths.dtype)
        return KeyedJaggedTensor(keys=keys, values=values, weights=weights, lengths=ones)
    first = torch.arange(len(keys), device=index.device) * lengths.shape[1]
    bags = (first.unsqueeze(1) + index).flatten()
    positions, picked = _jagged_positions(sparse.offsets(), bags)
    # The dtype of lengths is kept: differences of offsets are int64, lengths often int32.
    values = sparse.values()[positions]
    if weights is not None:
        weights = weights[positions]
    return KeyedJaggedTensor(keys=keys, values=values, weights=weights, lengths=picked.to(lengths.dtype))


def _jagged_positions(offsets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the positions of all values of the jagged rows ``index``, in order, and the rows' lengths."""
    lengths = offsets.diff()[index]
    total = int(lengths.sum())
    ends = lengths.cumsum(0)
    # Per value, the distance from its new position to its old position; output_size spares a second synchronisation.
    shift = torch.repeat_interleave(offsets[:-1][index] - (ends - lengths), lengths, output_size=total)
    return shift + torch.arange(total, device=shift.device), lengths
