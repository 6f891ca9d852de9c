"""Batch: examples as tensors, and how rows are picked from them.

Legend: B examples, F dense features, E events of a sequence, C id fields and G dense fields of an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchrec import KeyedJaggedTensor


@dataclass(frozen=True)
class SequenceBatch:
    """Histories of B examples: ids (E, C) that are table rows, and numbers (E, G), with offsets (B + 1,).

    Where the stream has times of events, ``ages_E`` are whole seconds from each event to its example, int64.
    """

    ids_EC: Tensor
    dense_EG: Tensor
    offsets: Tensor
    ages_E: Tensor | None = None

    def to(self, device: torch.device) -> SequenceBatch:
        """The same histories on a device."""
        ages_E = None if self.ages_E is None else self.ages_E.to(device)
        return SequenceBatch(self.ids_EC.to(device), self.dense_EG.to(device), self.offsets.to(device), ages_E)

    def select(self, index: Tensor) -> SequenceBatch:
        """The histories of some examples, in the order of ``index``."""
        events, lengths = _events_of(self.offsets, index)
        offsets = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        ages_E = None if self.ages_E is None else self.ages_E[events]
        return SequenceBatch(self.ids_EC[events], self.dense_EG[events], offsets, ages_E)

    def slice(self, start: int, stop: int) -> SequenceBatch:
        """The histories of successive examples; the events are not copied."""
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
        sparse: categorical and multi-valued features by name; values are table rows.
        sequences: histories by name.
        labels: (B,) float32 by task.
        oracle: (B,) float32 true probability by task, on simulated streams.
    """

    example_id: Tensor
    event_time_us: Tensor
    group: Tensor
    dense_BF: Tensor
    sparse: KeyedJaggedTensor
    sequences: Mapping[str, SequenceBatch]
    labels: Mapping[str, Tensor]
    oracle: Mapping[str, Tensor]

    @property
    def size(self) -> int:
        """B."""
        return self.example_id.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same examples on a device; no copy where they are there already."""
        if self.example_id.device == device:
            return self
        return Batch(
            self.example_id.to(device),
            self.event_time_us.to(device),
            self.group.to(device),
            self.dense_BF.to(device),
            self.sparse.to(device),
            {name: sequence.to(device) for name, sequence in self.sequences.items()},
            {task: label.to(device) for task, label in self.labels.items()},
            {task: truth.to(device) for task, truth in self.oracle.items()},
        )

    def only(self, features: frozenset[str], dense: Tensor) -> Batch:
        """The same examples with some features only: names of sparse ones and histories, columns of dense ones."""
        keys = self.sparse.keys()
        kept = [position for position, key in enumerate(keys) if key in features]
        sparse = self.sparse if len(kept) == len(keys) else self.sparse.permute(kept)
        sequences = {name: sequence for name, sequence in self.sequences.items() if name in features}
        dense_BF = self.dense_BF if dense.numel() == self.dense_BF.shape[1] else self.dense_BF[:, dense]
        return Batch(
            self.example_id, self.event_time_us, self.group, dense_BF, sparse, sequences, self.labels, self.oracle
        )

    def bags_of(self, features: frozenset[str]) -> Batch:
        """The same examples, of which all but the named sparse features are empty."""
        keys, lengths = self.sparse.keys(), self.sparse.lengths().view(-1, self.size)
        kept = torch.tensor([key in features for key in keys], device=lengths.device)
        values = [self.sparse[key].values() for key in keys if key in features]
        sparse = KeyedJaggedTensor(
            keys=keys,
            values=torch.cat([self.sparse.values()[:0], *values]),
            lengths=(lengths * kept.unsqueeze(1)).flatten(),
            stride=self.size,
        )
        empty = {
            name: replace(sequence.slice(0, 0), offsets=torch.zeros_like(sequence.offsets))
            for name, sequence in self.sequences.items()
        }
        return replace(self, sparse=sparse, sequences=empty)

    def select(self, index: Tensor) -> Batch:
        """Some of the examples, in the order of ``index`` (int64)."""
        return Batch(
            example_id=self.example_id[index],
            event_time_us=self.event_time_us[index],
            group=self.group[index],
            dense_BF=self.dense_BF[index],
            sparse=_select_sparse(self.sparse, index),
            sequences={name: sequence.select(index) for name, sequence in self.sequences.items()},
            labels={task: label[index] for task, label in self.labels.items()},
            oracle={task: truth[index] for task, truth in self.oracle.items()},
        )

    def slice(self, start: int, stop: int) -> Batch:
        """Successive examples; of most tensors nothing is copied."""
        rows = slice(start, stop)
        return Batch(
            example_id=self.example_id[rows],
            event_time_us=self.event_time_us[rows],
            group=self.group[rows],
            dense_BF=self.dense_BF[rows],
            sparse=_slice_sparse(self.sparse, start, stop),
            sequences={name: sequence.slice(start, stop) for name, sequence in self.sequences.items()},
            labels={task: label[rows] for task, label in self.labels.items()},
            oracle={task: truth[rows] for task, truth in self.oracle.items()},
        )


def _slice_sparse(sparse: KeyedJaggedTensor, start: int, stop: int) -> KeyedJaggedTensor:
    keys, size = sparse.keys(), sparse.stride()
    bags = torch.arange(len(keys)) * size
    ends = sparse.offsets()[torch.stack([bags + start, bags + stop]).to(sparse.device())].tolist()
    values = [sparse.values()[first:last] for first, last in zip(*ends, strict=True)]
    lengths = sparse.lengths().view(len(keys), size)[:, start:stop].contiguous().flatten()
    return KeyedJaggedTensor(
        keys=keys,
        values=torch.cat([sparse.values()[:0], *values]),
        lengths=lengths,
        stride=stop - start,
        length_per_key=[part.numel() for part in values],  # or each look at one key sums all lengths first
    )


def _select_sparse(sparse: KeyedJaggedTensor, index: Tensor) -> KeyedJaggedTensor:
    keys = sparse.keys()
    if not keys:
        return KeyedJaggedTensor(keys=[], values=sparse.values(), lengths=sparse.lengths()[:0], stride=index.numel())
    lengths = sparse.lengths().view(len(keys), sparse.stride())
    if sparse.values().numel() == lengths.numel() and bool((lengths == 1).all()):
        values = sparse.values().view(lengths.shape)[:, index].flatten()
        return KeyedJaggedTensor(keys=keys, values=values, lengths=torch.ones_like(values, dtype=lengths.dtype))
    first = torch.arange(len(keys), device=index.device) * lengths.shape[1]
    bags = (first.unsqueeze(1) + index).flatten()
    positions, picked = _events_of(sparse.offsets(), bags)
    return KeyedJaggedTensor(keys=keys, values=sparse.values()[positions], lengths=picked.to(lengths.dtype))


def _events_of(offsets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of all values of the jagged rows ``index``, in order, and the rows' lengths."""
    lengths = offsets.diff()[index]
    total = int(lengths.sum())
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(offsets[:-1][index] - (ends - lengths), lengths, output_size=total)
    return shift + torch.arange(total, device=shift.device), lengths
