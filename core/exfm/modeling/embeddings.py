"""Looks up embeddings of all tables of a model in at most two fused calls.

Legend: B examples, N tokens, D width, E events of a sequence, C id fields of an event.

``PooledTables`` serves tables that only bags of a batch's examples look up: its TorchRec collection takes a key per
feature. ``EventTables`` serves tables that events of a sequence look up too. An event is a bag of a single id, because
FBGEMM's pooled kernel is several times faster on a CPU than its unpooled kernel and gives equal values. All lookups of
a table share a key, so each row is updated once per step with its whole gradient, and the candidate item shares rows
with the history.

A bag is averaged. Where every bag of a table has at most a single id, the table sums its bags, because the values are
the same and the kernel is three times faster on a CPU. Where the ids of some feature have weights, each id of the batch
has a weight, with the sum 1 in its bag, and all tables sum: FBGEMM multiplies rows by weights in sums alone.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.embedding_configs import PoolingType

from exfm.data.batch import Batch
from exfm.interfaces.jagged import example_index


@dataclass(frozen=True)
class Lookup:
    """Names a lookup: a feature's bags, or an id field of a sequence's events.

    Attributes:
        key: the feature's name, or the sequence's.
        table: the table it reads.
        field: the position of the id field among the sequence's; None for a feature of the batch.
        single: whether every bag has at most a single id.
    """

    key: str
    table: str
    field: int | None = None
    single: bool = False

    @property
    def name(self) -> str:
        """Returns a name that no other lookup has."""
        return self.key if self.field is None else f"{self.key}:{self.field}"


@dataclass(frozen=True)
class TableSpec:
    """Describes rows, width and initial spread of tables, and whether ids have weights."""

    rows: Mapping[str, int]
    dim: int
    init_std: float
    weighted: bool = False

    def collection(self, keys: Mapping[str, list[str]], single: Collection[str]) -> EmbeddingBagCollection:
        """Builds a TorchRec collection on the meta device, because a parallel plan allocates its memory.

        Args:
            keys: the keys that read each table.
            single: the tables whose bags all have at most a single id.
        """
        # A uniform distribution over [-a, a] has the standard deviation a / sqrt(3).
        half_width = self.init_std * math.sqrt(3.0)
        configs: list[EmbeddingBagConfig] = []
        for table, names in keys.items():
            config = EmbeddingBagConfig(
                # The name of a child module: prefixed, because it must not be that of an attribute.
                name=f"table_{table}",
                embedding_dim=self.dim,
                num_embeddings=self.rows[table],
                feature_names=names,
                pooling=PoolingType.SUM if self.weighted or table in single else PoolingType.MEAN,
                weight_init_min=-half_width,
                weight_init_max=half_width,
            )
            configs.append(config)
        return EmbeddingBagCollection(device=torch.device("meta"), tables=configs, is_weighted=self.weighted)


def _by_table(lookups: Iterable[Lookup], *, events_apart: bool) -> tuple[dict[str, list[Lookup]], set[str]]:
    """Groups lookups by table, and returns the tables whose bags all have at most a single id, which come first.

    They come first because TorchRec groups the tables of equal pooling, and names its columns as if the order of the
    tables had stayed.

    Args:
        lookups: all lookups of a collection.
        events_apart: whether each event is a bag, not each history.
    """
    groups: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        groups.setdefault(lookup.table, []).append(lookup)
    single: set[str] = set()
    for table, group in groups.items():
        if all(lookup.single or (events_apart and lookup.field is not None) for lookup in group):
            single.add(table)
    return dict(sorted(groups.items(), key=lambda item: item[0] not in single)), single


class PooledTables(nn.Module):
    """Looks up the bags of B examples; a sequence's field is averaged like a multi-valued feature."""

    def __init__(self, lookups: Iterable[Lookup], spec: TableSpec) -> None:
        super().__init__()
        groups, single = _by_table(lookups, events_apart=False)
        self.order: list[Lookup] = []
        keys: dict[str, list[str]] = {}
        for table, group in groups.items():
            self.order += group
            keys[table] = [lookup.name for lookup in group]
        self.dim, self.weighted = spec.dim, spec.weighted
        self.bags = spec.collection(keys, single)

    def forward(self, batch: Batch) -> dict[Lookup, Tensor]:
        """Returns (B, D) for every lookup."""
        return dict(zip(self.order, torch.split(self.columns(batch), self.dim, dim=1), strict=True))

    def columns(self, batch: Batch) -> Tensor:
        """Returns all lookups in ``order`` side by side, (B, lookups * D)."""
        return _in_order(self.bags(self._features(batch)), [lookup.name for lookup in self.order])

    def _features(self, batch: Batch) -> KeyedJaggedTensor:
        """Returns the ids of a batch with a key per lookup, in order."""
        names = [lookup.name for lookup in self.order]
        # The batch's tensor as it stands, where it has the same keys: no copy.
        if names == batch.sparse.keys():
            return batch.sparse
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        weights: list[Tensor] = []
        for lookup in self.order:
            if lookup.field is None:
                bags = batch.sparse[lookup.key]
                values.append(bags.values())
                lengths.append(bags.lengths())
                if self.weighted:
                    weights.append(bags.weights())
            else:
                sequence = batch.sequences[lookup.key]
                values.append(sequence.ids_EC[:, lookup.field])
                lengths.append(sequence.offsets.diff().to(torch.int32))
                if self.weighted:
                    weights.append(_equal_weights(sequence.offsets, values[-1].numel()))
        return KeyedJaggedTensor(
            keys=names,
            values=torch.cat(values),
            lengths=torch.cat(lengths),
            stride=batch.size,
            weights=torch.cat(weights) if self.weighted else None,
        )


def _in_order(looked_up: KeyedTensor, keys: list[str]) -> Tensor:
    """Returns the columns of some keys, in their order: a sharded collection groups its tables by sharding type."""
    columns: Tensor = looked_up.values()
    if looked_up.keys() == keys:
        return columns
    by_key = looked_up.to_dict()
    return torch.cat([by_key[key] for key in keys], dim=1)


def _equal_weights(offsets: Tensor, events: int) -> Tensor:
    """Returns weights (E,) that make a weighted sum of each history its mean."""
    share_B = 1 / offsets.diff().clamp(min=1)
    return share_B.index_select(0, example_index(offsets, events))


class EventTables(nn.Module):
    """Looks up the bags of B examples, and each event by itself, from shared tables.

    A table's lookups are concatenated as the bags of a single key. Keys must have equally many bags, so shorter keys
    are padded with empty bags, which cost an offset each::

        movie   | bags of feature movie_id (B) | events of history (E) |
        rating  | events of history (E)        | empty (B)             |
    """

    def __init__(self, lookups: Iterable[Lookup], spec: TableSpec) -> None:
        super().__init__()
        self.groups, single = _by_table(lookups, events_apart=True)
        self.dim, self.weighted = spec.dim, spec.weighted
        self.bags = spec.collection({table: [table] for table in self.groups}, single)

    def forward(self, batch: Batch) -> dict[Lookup, Tensor]:
        """Returns (B, D) for a feature's lookup, (E, D) for a sequence's."""
        values, lengths, counts = self._features(batch)
        # TorchRec refuses keys without any bag: a batch may hold no event at all.
        stride = max(1, *(sum(group) for group in counts.values()))
        padded = [torch.nn.functional.pad(length, (0, stride - length.numel())) for length in lengths]
        features = KeyedJaggedTensor(
            keys=list(self.groups),
            values=torch.cat(values),
            lengths=torch.cat(padded),
            stride=stride,
            weights=self._weights(batch) if self.weighted else None,
        )
        rows_by_table = torch.split(_in_order(self.bags(features), list(self.groups)), self.dim, dim=1)
        looked_up: dict[Lookup, Tensor] = {}
        for rows, (table, group) in zip(rows_by_table, self.groups.items(), strict=True):
            # The rows after the last bag are those of the padding.
            rows_by_lookup = torch.split(rows[: sum(counts[table])], counts[table])
            looked_up.update(zip(group, rows_by_lookup, strict=True))
        return looked_up

    def _weights(self, batch: Batch) -> Tensor:
        """Returns the weight of each id, in the order of ``_features``: those of bags, and 1 of an event."""
        weights: list[Tensor] = []
        for lookup in chain.from_iterable(self.groups.values()):
            if lookup.field is None:
                weights.append(batch.sparse[lookup.key].weights())
            else:
                ids_EC = batch.sequences[lookup.key].ids_EC
                weights.append(torch.ones(ids_EC.shape[0], device=ids_EC.device))
        return torch.cat(weights)

    def _features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], dict[str, list[int]]]:
        """Returns ids and bag lengths of each lookup's table, and the number of bags of each lookup, by table."""
        values: list[Tensor] = []
        lengths: list[Tensor] = []
        counts: dict[str, list[int]] = {}
        for table, group in self.groups.items():
            bags: list[Tensor] = []
            for lookup in group:
                if lookup.field is None:
                    feature = batch.sparse[lookup.key]
                    values.append(feature.values())
                    bags.append(feature.lengths())
                else:
                    events = batch.sequences[lookup.key].ids_EC[:, lookup.field]
                    values.append(events)
                    bags.append(torch.ones(events.shape[0], dtype=torch.int32, device=events.device))
            counts[table] = [bag.numel() for bag in bags]
            lengths.append(torch.cat(bags))
        return values, lengths, counts
