"""Embedding tables: every lookup of a model in at most two fused calls.

Legend: B examples, N tokens, D width, E events of a sequence, C id fields of an event.

``PooledTables`` serves tables that only bags of one batch look up: its TorchRec collection takes one key per feature.
``EventTables`` serves tables that events of a sequence look up too. Events go in as bags of one, because FBGEMM's
pooled kernel is several times faster on a CPU than its unpooled one and gives equal values. All lookups of one table
are one key, so each row is updated once per step with its whole gradient, and the candidate item shares rows with the
history.

A bag is averaged. Where no bag of a table has more than one id, the table adds its bags up: the same values, from a
kernel three times faster on a CPU.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from exfm.data.batch import Batch


@dataclass(frozen=True)
class Lookup:
    """One thing that is looked up: a feature's bags, or one id field of a sequence's events.

    Attributes:
        key: the feature's name, or the sequence's.
        table: the table it reads.
        field: the position of the id field among the sequence's; None for a feature of the batch.
        single: whether a bag has one id at most.
    """

    key: str
    table: str
    field: int | None = None
    single: bool = False

    @property
    def name(self) -> str:
        """A name that no other lookup has."""
        return self.key if self.field is None else f"{self.key}:{self.field}"


@dataclass(frozen=True)
class TableShape:
    """Rows, width and initial spread of tables."""

    rows: Mapping[str, int]
    dim: int
    init_std: float

    def collection(self, keys: Mapping[str, list[str]], single: Collection[str]) -> EmbeddingBagCollection:
        """A TorchRec collection without memory, for a plan to place.

        Args:
            keys: what reads each table.
            single: the tables none of whose bags has more than one id.
        """
        half_width = self.init_std * math.sqrt(3.0)
        return EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(
                    name=f"table_{table}",  # a child module's name, which must not be an attribute's
                    embedding_dim=self.dim,
                    num_embeddings=self.rows[table],
                    feature_names=names,
                    pooling=PoolingType.SUM if table in single else PoolingType.MEAN,
                    weight_init_min=-half_width,
                    weight_init_max=half_width,
                )
                for table, names in keys.items()
            ],
        )


def _by_table(lookups: Iterable[Lookup], *, events_apart: bool) -> tuple[dict[str, list[Lookup]], set[str]]:
    """Lookups by table, and the tables none of whose bags has more than one id, which come first.

    TorchRec joins the tables of one pooling, and names its columns as if it had kept the order it was given.

    Args:
        events_apart: whether each event is a bag of its own, not a history.
    """
    groups: dict[str, list[Lookup]] = {}
    for lookup in lookups:
        groups.setdefault(lookup.table, []).append(lookup)
    single = {
        table
        for table, group in groups.items()
        if all(lookup.single or (events_apart and lookup.field is not None) for lookup in group)
    }
    return dict(sorted(groups.items(), key=lambda item: item[0] not in single)), single


class PooledTables(nn.Module):
    """Bags of B examples; a sequence's field is averaged like a multi-valued feature."""

    def __init__(self, lookups: Iterable[Lookup], shape: TableShape) -> None:
        super().__init__()
        groups, single = _by_table(lookups, events_apart=False)
        self.order = [lookup for group in groups.values() for lookup in group]
        self.dim = shape.dim
        keys = {table: [lookup.name for lookup in group] for table, group in groups.items()}
        self.bags = shape.collection(keys, single)

    def forward(self, batch: Batch) -> dict[Lookup, Tensor]:
        """Returns (B, D) for every lookup."""
        return dict(zip(self.order, torch.split(self.columns(batch), self.dim, dim=1), strict=True))

    def columns(self, batch: Batch) -> Tensor:
        """All lookups in ``order`` side by side, (B, lookups * D), as the tables give them."""
        columns: Tensor = self.bags(self._features(batch)).values()
        return columns

    def _features(self, batch: Batch) -> KeyedJaggedTensor:
        names = [lookup.name for lookup in self.order]
        if names == batch.sparse.keys():
            return batch.sparse
        values, lengths = [], []
        for lookup in self.order:
            if lookup.field is None:
                bags = batch.sparse[lookup.key]
                values.append(bags.values())
                lengths.append(bags.lengths())
            else:
                sequence = batch.sequences[lookup.key]
                values.append(sequence.ids_EC[:, lookup.field])
                lengths.append(sequence.offsets.diff().to(torch.int32))
        return KeyedJaggedTensor(keys=names, values=torch.cat(values), lengths=torch.cat(lengths), stride=batch.size)


class EventTables(nn.Module):
    """Bags of B examples, and events one by one, from shared tables.

    A table's lookups lie one after the other as the bags of one key. Keys must have equally many bags, so the shorter
    ones end in empty bags, which cost an offset each::

        movie   | bags of feature movie_id (B) | events of history (E) |
        rating  | events of history (E)        | empty (B)             |
    """

    def __init__(self, lookups: Iterable[Lookup], shape: TableShape) -> None:
        super().__init__()
        self.groups, single = _by_table(lookups, events_apart=True)
        self.dim = shape.dim
        self.bags = shape.collection({table: [table] for table in self.groups}, single)

    def forward(self, batch: Batch) -> dict[Lookup, Tensor]:
        """Returns (B, D) for a feature's lookup, (E, D) for a sequence's."""
        values, lengths, counts = self._features(batch)
        # TorchRec refuses keys without any bag: a batch may hold no event at all.
        stride = max(1, *(sum(group) for group in counts.values()))
        padded = [torch.nn.functional.pad(length, (0, stride - length.numel())) for length in lengths]
        features = KeyedJaggedTensor(
            keys=list(self.groups), values=torch.cat(values), lengths=torch.cat(padded), stride=stride
        )
        rows_by_table = self.bags(features).values().split(self.dim, dim=1)
        found: dict[Lookup, Tensor] = {}
        for rows, (table, group) in zip(rows_by_table, self.groups.items(), strict=True):
            parts = rows[: sum(counts[table])].split(counts[table])
            found.update(zip(group, parts, strict=True))
        return found

    def _features(self, batch: Batch) -> tuple[list[Tensor], list[Tensor], dict[str, list[int]]]:
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
