"""Features to tokens and events: what a backbone and the sequence encoders are given.

Legend: B examples, N tokens, D width, F dense features, E events, G numbers per event, K summary tokens, R processes,
T tables.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from exfm.data.batch import Batch, SequenceBatch
from exfm.interfaces.jagged import JaggedSequence, example_index
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.interfaces.schema import (
    CategoricalFeature,
    DenseFeature,
    FeatureSchema,
    MultiValuedFeature,
    SequenceFeature,
)
from exfm.modeling.embeddings import EventTables, Lookup, PooledTables, TableShape
from exfm.modeling.managed_ids import ManagedIds, Started
from exfm.modeling.row_offset import RowOffset

DENSE_TOKEN = "dense"


class DenseTokens(nn.Module):
    """All dense features through one small MLP to one or more tokens.

    Numbers arrive on any scale, so they are standardised by the mean and variance of the examples seen so far. The
    statistics move after the forward pass, so an example's prediction does not depend on its own batch.

    Attributes:
        frozen: whether the statistics stay as they are.
    """

    count: Tensor
    mean_F: Tensor
    square_F: Tensor

    def __init__(self, features: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.frozen = False
        hidden = max(32, 2 * dim)
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, tokens * dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("square_F", torch.zeros(features, dtype=torch.float64))

    def forward(self, dense_BF: Tensor) -> Tensor:
        """Maps (B, F) to tokens (B, tokens, D)."""
        variance_F = (self.square_F / self.count.clamp(min=1.0)).clamp(min=1e-6)
        variance_F = torch.where(self.count > 0, variance_F, torch.ones_like(variance_F))
        scale_F = variance_F.rsqrt().to(dense_BF.dtype)
        scaled_BF = ((dense_BF - self.mean_F.to(dense_BF.dtype)) * scale_F).clamp(-10.0, 10.0)
        tokens_BND: Tensor = self.mlp(scaled_BF).unflatten(-1, (self.tokens, self.dim))
        return tokens_BND

    @torch.no_grad()
    def observe(self, dense_BF: Tensor, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Adds a batch to the statistics (Chan et al. 1979): to be called once it has been predicted.

        Args:
            dense_BF: this process's rows of it.
            process_group: the processes that have the others.
        """
        if self.frozen:
            return
        batch, mean_F, square_F = _moments(dense_BF.to(torch.float64))
        if process_group.world_size > 1:
            batch, mean_F, square_F = _joined(
                process_group.all_gather(torch.cat([batch.unsqueeze(0), mean_F, square_F]))
            )
        if not batch:
            return
        delta_F = mean_F - self.mean_F
        total = self.count + batch
        self.square_F += square_F + delta_F**2 * self.count * batch / total
        self.mean_F += delta_F * batch / total
        self.count.copy_(total)


def _moments(values_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count, mean (F,) and sum of squared distances from it (F,), of no rows too."""
    batch = torch.tensor(float(values_BF.shape[0]), dtype=torch.float64, device=values_BF.device)
    if not values_BF.shape[0]:
        return batch, values_BF.sum(dim=0), values_BF.sum(dim=0)
    mean_F = values_BF.mean(dim=0)
    return batch, mean_F, ((values_BF - mean_F) ** 2).sum(dim=0)


def _joined(moments_RK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The moments of several parts' rows together, K = 1 + 2 F."""
    features = (moments_RK.shape[1] - 1) // 2
    count_R1, mean_RF, square_RF = torch.split(moments_RK, [1, features, features], dim=1)
    batch = count_R1.sum()
    mean_F = (count_R1 * mean_RF).sum(dim=0) / batch.clamp(min=1.0)
    return batch, mean_F, (square_RF + count_R1 * (mean_RF - mean_F) ** 2).sum(dim=0)


class Featurizer(nn.Module):
    """Embedding tables and projections of one model.

    Args:
        schema: the features the model sees.
        raw_sequences: whether events are looked up one by one, for an encoder or a backbone that reads sequences;
            otherwise each sequence is averaged to one token.

    Attributes:
        token_names: of the N tokens ``forward`` returns, in order.
        token_tables: the table each token reads ("" for a dense one).
        offsets: what transfer adds to the rows of a table, by table. They are not part of the model.
        frozen_tables: the tables that training leaves as they are.
        reads_times: whether raw sequences have the ages of their events.
        managed: which id has which row, of the tables that manage them.
    """

    def __init__(
        self, schema: FeatureSchema, dim: int, init_std: float, dense_tokens: int, raw_sequences: bool
    ) -> None:
        super().__init__()
        self.sequences = [feature for feature in schema.features if isinstance(feature, SequenceFeature)]
        self.raw_sequences = raw_sequences
        self.reads_times = False
        self.dim = dim
        self.offsets: dict[str, RowOffset] = {}
        self.frozen_tables: set[str] = set()
        # Of these an example has one id at most, and where there are as many ids as examples, one each.
        self._categorical = {feature.name for feature in schema.features if isinstance(feature, CategoricalFeature)}
        self.table_rows = schema.tables()
        managed = schema.managed().items()
        self.managed = nn.ModuleDict(
            {_table(table): ManagedIds(self.table_rows[table], eviction) for table, eviction in managed}
        )
        shape = TableShape(self.table_rows, dim, init_std)
        bags = [
            Lookup(feature.name, feature.table_name, single=isinstance(feature, CategoricalFeature))
            for feature in schema.features
            if isinstance(feature, CategoricalFeature | MultiValuedFeature)
        ]
        self.fields = {sequence.name: _id_lookups(sequence) for sequence in self.sequences}
        events = [lookup for fields in self.fields.values() for lookup in fields]
        event_tables = {lookup.table for lookup in events} if raw_sequences else set()
        shared = [lookup for lookup in bags if lookup.table in event_tables]
        pooled = [lookup for lookup in bags if lookup.table not in event_tables] + ([] if raw_sequences else events)
        self.pooled = PooledTables(pooled, shape) if pooled else None
        self.events = EventTables([*shared, *events], shape) if event_tables else None
        self.event_dense = nn.ModuleDict(
            {
                _child(sequence.name): nn.Linear(numbers, dim)
                for sequence in self.sequences
                if (numbers := sum(field.kind == "dense" for field in sequence.fields))
            }
        )
        width = sum(isinstance(feature, DenseFeature) for feature in schema.features)
        self.dense = DenseTokens(width, dense_tokens, dim) if width else None
        in_order = self.pooled.order if self.pooled is not None else []
        self.bags = [*(lookup for lookup in in_order if lookup.field is None), *shared]
        self._bags_alone = all(lookup.field is None for lookup in in_order)
        averaged = [] if raw_sequences else [sequence.name for sequence in self.sequences]
        dense = [DENSE_TOKEN if i == 0 else f"{DENSE_TOKEN}:{i}" for i in range(dense_tokens)] if width else []
        self.token_names = (*(lookup.key for lookup in self.bags), *averaged, *dense)
        self.token_tables = (*(lookup.table for lookup in self.bags), *("" for _ in [*averaged, *dense]))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, JaggedSequence]]:
        """Returns tokens (B, N, D) and the raw sequences, events (E, D), by name."""
        tokens, found = self._bag_tokens(self._with_rows(batch))
        sequences: dict[str, JaggedSequence] = {}
        for sequence in self.sequences:
            history = batch.sequences[sequence.name]
            rows = [found[lookup] for lookup in self.fields[sequence.name]]
            if self.raw_sequences:
                events_ED = self._sum(rows, sequence.name, history.dense_EG)
                ages_E = history.ages_E if self.reads_times else None
                sequences[sequence.name] = JaggedSequence(events_ED, history.offsets, sequence.max_length, ages_E)
            else:
                tokens.append(self._sum(rows, sequence.name, _segment_mean(history.dense_EG, history.offsets)))
        if self.dense is not None:
            tokens.append(self.dense(batch.dense_BF).flatten(1))
        tokens_BW = torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]
        return tokens_BW.view(batch.size, len(self.token_names), self.dim), sequences

    def _bag_tokens(self, batch: Batch) -> tuple[list[Tensor], dict[Lookup, Tensor]]:
        """The tokens of bags in one or more tensors (B, bags * D), and what else is looked up."""
        as_they_are = self._bags_alone and not self.offsets and not self.frozen_tables
        if isinstance(self.pooled, PooledTables) and as_they_are:  # a served model has tables of another kind
            found = self.events(batch) if self.events is not None else {}
            return [self.pooled.columns(batch), *(found[lookup] for lookup in self.bags if lookup in found)], found
        found = self._look_up(batch)
        return [batch.dense_BF.new_zeros(batch.size, 0), *(found[lookup] for lookup in self.bags)], found

    @torch.no_grad()
    def rows(self, batch: Batch, features: Collection[str]) -> dict[str, Tensor]:
        """What the bags of some features look up, (B, D) by feature."""
        found = self._look_up(self._with_rows(batch.bags_only(frozenset(features))))
        return {lookup.key: found[lookup] for lookup in self.bags if lookup.key in features}

    def tokens_like(self, sequence: SequenceFeature) -> tuple[int, ...]:
        """Places of the tokens that share a table with a sequence: those of the candidate item."""
        tables = {sequence.table_name(field) for field in sequence.fields if field.kind == "categorical"}
        return tuple(place for place, table in enumerate(self.token_tables) if table in tables)

    @property
    def table_numel(self) -> int:
        """Weights in all tables together, wherever they lie."""
        used = {lookup.table for lookup in self.pooled.order} if self.pooled is not None else set()
        used |= set(self.events.groups) if self.events is not None else set()
        return sum(self.table_rows[table] for table in used) * self.dim

    def _look_up(self, batch: Batch) -> dict[Lookup, Tensor]:
        """(B, D) for a feature's lookup; for a sequence's (E, D), or (B, D) if averaged."""
        found = self.pooled(batch) if self.pooled is not None else {}
        found |= self.events(batch) if self.events is not None else {}
        for lookup in found if self.frozen_tables or self.offsets else ():
            if lookup.table in self.frozen_tables:
                found[lookup] = found[lookup].detach()
            if lookup.table in self.offsets:
                found[lookup] = found[lookup] + self._offset(lookup, batch)
        return found

    def observe(
        self, batch: Batch, process_group: ProcessGroup = SINGLE_PROCESS, own: int | None = None
    ) -> dict[str, Started]:
        """Moves the statistics of the dense features and the rows of managed ids, after the batch has been predicted.

        Returns:
            The rows that have got another id, by table: the same on every process.
        """
        if self.dense is not None:
            self.dense.observe(batch.dense_BF[:own], process_group)
        return {
            table: self._manager(table).observe(ids) for table, ids in _of_all(self._ids(batch), process_group).items()
        }

    def _ids(self, batch: Batch) -> dict[str, Tensor]:
        """All ids of a batch, by table that manages them."""
        ids: dict[str, list[Tensor]] = {}
        for lookup in (*self.bags, *(one for fields in self.fields.values() for one in fields)):
            if _table(lookup.table) in self.managed:
                ids.setdefault(lookup.table, []).append(_values(lookup, batch))
        return {table: torch.cat(parts) for table, parts in ids.items()}

    def _manager(self, table: str) -> ManagedIds:
        manager = self.managed[_table(table)]
        assert isinstance(manager, ManagedIds)
        return manager

    def _with_rows(self, batch: Batch) -> Batch:
        """The batch with rows in the place of managed ids."""
        if not self.managed:
            return batch
        tables = {lookup.key: lookup.table for lookup in self.bags}
        sparse, keys = batch.sparse, batch.sparse.keys()
        values = [rows_of(self.managed, tables[key], sparse[key].values()) for key in keys]
        if keys:
            lengths, stride = sparse.lengths(), sparse.stride()
            sparse = KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=lengths, stride=stride)
        sequences = {name: self._rows_of_events(name, history) for name, history in batch.sequences.items()}
        return replace(batch, sparse=sparse, sequences=sequences)

    def _rows_of_events(self, name: str, history: SequenceBatch) -> SequenceBatch:
        fields = self.fields[name]
        rows = [rows_of(self.managed, one.table, history.ids_EC[:, index]) for index, one in enumerate(fields)]
        return replace(history, ids_EC=torch.stack(rows, dim=1)) if rows else history

    def _offset(self, lookup: Lookup, batch: Batch) -> Tensor:
        """What is added to a lookup: (B, D) to a feature's, and to a sequence's field (E, D), or (B, D) if averaged."""
        offset = self.offsets[lookup.table]
        if lookup.field is None:
            bags = batch.sparse[lookup.key]
            rows_VD: Tensor = offset(bags.values(), lookup.key)
            single = lookup.key in self._categorical and rows_VD.shape[0] == batch.size
            return rows_VD if single else _segment_mean(rows_VD, bags.offsets().long())
        history = batch.sequences[lookup.key]
        rows_E = history.ids_EC[:, lookup.field].contiguous()
        added: Tensor = offset(rows_E) if self.raw_sequences else offset.mean(rows_E, history.offsets)
        return added

    def _sum(self, rows: list[Tensor], sequence: str, numbers: Tensor) -> Tensor:
        if _child(sequence) in self.event_dense:
            rows = [*rows, self.event_dense[_child(sequence)](numbers)]
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total


def _child(sequence: str) -> str:
    """A name that torch accepts for a child module: a sequence may be called `items`."""
    return f"sequence_{sequence}"


def _table(name: str) -> str:
    """A name that torch accepts for a child module: a table may be called `items` too."""
    return f"ids_{name}"


def rows_of(managed: nn.ModuleDict, table: str, ids: Tensor) -> Tensor:
    """The table rows of ids as a batch has them, by what a featurizer keeps in ``managed``."""
    rows: Tensor = managed[_table(table)](ids) if _table(table) in managed else ids
    return rows


def _of_all(ids: dict[str, Tensor], process_group: ProcessGroup) -> dict[str, Tensor]:
    """The ids of all processes by table, in two exchanges however many tables there are: every map stays the same."""
    if process_group.world_size == 1 or not ids:
        return ids
    counts_RT = process_group.all_gather(torch.tensor([own.numel() for own in ids.values()])).tolist()
    whole = process_group.all_gather_rows(torch.cat([*ids.values()]), [sum(counts_T) for counts_T in counts_RT])
    parts = torch.split(whole, [count for counts_T in counts_RT for count in counts_T])
    return {table: torch.cat(parts[number :: len(ids)]) for number, table in enumerate(ids)}


def _values(lookup: Lookup, batch: Batch) -> Tensor:
    if lookup.field is None:
        ids: Tensor = batch.sparse[lookup.key].values()
        return ids
    return batch.sequences[lookup.key].ids_EC[:, lookup.field]


def _id_lookups(sequence: SequenceFeature) -> list[Lookup]:
    ids = [field for field in sequence.fields if field.kind == "categorical"]
    return [Lookup(sequence.name, sequence.table_name(field), index) for index, field in enumerate(ids)]


def _segment_mean(values_EG: Tensor, offsets: Tensor) -> Tensor:
    lengths = offsets.diff()
    index = example_index(offsets, values_EG.shape[0])
    total_BG = values_EG.new_zeros(lengths.shape[0], values_EG.shape[1]).index_add_(0, index, values_EG)
    return total_BG / lengths.clamp(min=1).unsqueeze(1)
