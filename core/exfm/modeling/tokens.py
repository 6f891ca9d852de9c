"""Maps features to tokens and events, the inputs of a backbone and of sequence encoders.

Legend: B examples, N tokens, D width, E events, G numbers per event, V values, W columns, R processes, T tables.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from exfm.data.batch import Batch, SequenceBatch
from exfm.interfaces.jagged import JaggedSequence, example_index
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.interfaces.schema import BagFeature, FeatureSchema, SequenceFeature, SingleIdFeature
from exfm.modeling.dense_tokens import DenseTokens, EventNumbers
from exfm.modeling.embeddings import EventTables, Lookup, PooledTables, TableSpec
from exfm.modeling.managed_ids import ManagedIds, Started
from exfm.modeling.row_offset import RowOffset
from exfm.modeling.vector_token import VectorToken

DENSE_TOKEN = "dense"


class Featurizer(nn.Module):
    """Holds the embedding tables and projections of a model, and maps a batch to tokens and sequences.

    Args:
        schema: the features the model sees.
        raw_sequences: whether each event is looked up, for an encoder or a backbone that reads sequences; otherwise
            each sequence is averaged to a token.

    Attributes:
        token_names: the names of the N tokens that ``forward`` returns, in order.
        token_tables: the table each token reads ("" where it reads none).
        offsets: the offsets that transfer adds to the rows of a table, by table. They are a strategy's.
        frozen_tables: the tables that training does not change.
        reads_times: whether raw sequences have the ages of their events.
        managed: the maps from ids to rows, of the tables with managed ids.
        weighs_ids: whether the ids of some feature have weights.
    """

    def __init__(
        self, schema: FeatureSchema, dim: int, init_std: float, dense_tokens: int, raw_sequences: bool
    ) -> None:
        super().__init__()
        self.sequences = schema.sequences
        self.raw_sequences = raw_sequences
        self.reads_times = False
        self.dim = dim
        self.offsets: dict[str, RowOffset] = {}
        self.frozen_tables: set[str] = set()
        # An example has at most a single id of these, and where there are as many ids as examples, exactly that.
        self._single = frozenset(feature.name for feature in schema.features if isinstance(feature, SingleIdFeature))
        self.table_rows = schema.tables()
        self.managed = nn.ModuleDict()
        for table, eviction in schema.managed().items():
            self.managed[_table(table)] = ManagedIds(self.table_rows[table], eviction)
        self.weighs_ids = schema.weighs_ids
        spec = TableSpec(self.table_rows, dim, init_std, self.weighs_ids)
        bags: list[Lookup] = []
        for feature in schema.features:
            if isinstance(feature, BagFeature):
                bags.append(Lookup(feature.name, feature.table_name, single=feature.name in self._single))
        self.fields = {sequence.name: _id_lookups(sequence) for sequence in self.sequences}
        events = list(chain.from_iterable(self.fields.values()))
        event_tables = {lookup.table for lookup in events} if raw_sequences else set()
        shared = [lookup for lookup in bags if lookup.table in event_tables]
        pooled = [lookup for lookup in bags if lookup.table not in event_tables]
        if not raw_sequences:
            pooled += events
        self.pooled = PooledTables(pooled, spec) if pooled else None
        self.events = EventTables([*shared, *events], spec) if event_tables else None
        self.event_dense = nn.ModuleDict()
        for sequence in self.sequences:
            numbers = [field for field in sequence.fields if field.kind == "dense"]
            if numbers:
                missing = any(field.missing for field in numbers)
                self.event_dense[_child(sequence.name)] = EventNumbers(len(numbers), dim, missing)
        width = len(schema.dense)
        self.vectors = nn.ModuleDict()
        fills = [feature.missing for feature in schema.dense]
        self.dense = DenseTokens(width, dense_tokens, dim, fills) if width else None
        for feature in schema.vectors:
            self.vectors[_vector(feature.name)] = VectorToken(feature.width, dim)
        in_order = self.pooled.order if self.pooled is not None else []
        self.bags = [*(lookup for lookup in in_order if lookup.field is None), *shared]
        self._bags_alone = all(lookup.field is None for lookup in in_order)
        names: list[str] = []
        if not raw_sequences:
            names += [sequence.name for sequence in self.sequences]
        if width:
            names += [DENSE_TOKEN, *(f"{DENSE_TOKEN}:{i}" for i in range(1, dense_tokens))]
        # Last, so that a new vector leaves the positions of the other tokens as they are.
        names += [feature.name for feature in schema.vectors]
        self._vector_names = [feature.name for feature in schema.vectors]
        self.token_names = (*(lookup.key for lookup in self.bags), *names)
        self.token_tables = (*(lookup.table for lookup in self.bags), *[""] * len(names))

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, JaggedSequence]]:
        """Returns tokens (B, N, D) and the raw sequences, events (E, D), by name."""
        tokens, looked_up = self._bag_tokens(self._with_rows(batch))
        sequences: dict[str, JaggedSequence] = {}
        for sequence in self.sequences:
            history = batch.sequences[sequence.name]
            rows = [looked_up[lookup] for lookup in self.fields[sequence.name]]
            numbers = history.dense_EG
            if _child(sequence.name) in self.event_dense:
                numbers = self._numbers_of(sequence.name).prepare(numbers)
            if self.raw_sequences:
                events_ED = self._sum(rows, sequence.name, numbers)
                ages_E = history.ages_E if self.reads_times else None
                sequences[sequence.name] = JaggedSequence(events_ED, history.offsets, sequence.max_length, ages_E)
            else:
                tokens.append(self._sum(rows, sequence.name, _segment_mean(numbers, history.offsets)))
        if self.dense is not None:
            tokens.append(self.dense(batch.dense_BF).flatten(1))
        tokens += [self.vectors[_vector(name)](batch.vectors[name]) for name in self._vector_names]
        tokens_BW = torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0]
        return tokens_BW.view(batch.size, len(self.token_names), self.dim), sequences

    def _bag_tokens(self, batch: Batch) -> tuple[list[Tensor], dict[Lookup, Tensor]]:
        """Returns the tokens of bags in tensors (B, bags * D), in order, and the rows of all other lookups."""
        unchanged = self._bags_alone and not self.offsets and not self.frozen_tables
        # The pooled tables' output is the tokens already, without a split and a copy. A served model has other tables.
        if isinstance(self.pooled, PooledTables) and unchanged:
            looked_up = self.events(batch) if self.events is not None else {}
            shared = [looked_up[lookup] for lookup in self.bags if lookup in looked_up]
            return [self.pooled.columns(batch), *shared], looked_up
        looked_up = self._look_up(batch)
        # First an empty tensor, because a concatenation of no tensors is refused.
        return [batch.dense_BF.new_zeros(batch.size, 0), *(looked_up[lookup] for lookup in self.bags)], looked_up

    @torch.no_grad()
    def rows(self, batch: Batch, features: Collection[str]) -> dict[str, Tensor]:
        """Looks up the bags of some features, and returns (B, D) by feature."""
        looked_up = self._look_up(self._with_rows(batch.bags_only(frozenset(features))), features)
        return {lookup.key: looked_up[lookup] for lookup in self.bags if lookup.key in features}

    def tokens_like(self, sequence: SequenceFeature) -> tuple[int, ...]:
        """Returns the positions of the tokens that share a table with a sequence: those of the candidate item."""
        tables = {sequence.table_name(field) for field in sequence.fields if field.kind == "categorical"}
        return tuple(position for position, table in enumerate(self.token_tables) if table in tables)

    @property
    def table_numel(self) -> int:
        """Counts the weights in all tables together, on all devices."""
        used = {lookup.table for lookup in self.pooled.order} if self.pooled is not None else set()
        used |= set(self.events.groups) if self.events is not None else set()
        return sum(self.table_rows[table] for table in used) * self.dim

    def _look_up(self, batch: Batch, features: Collection[str] | None = None) -> dict[Lookup, Tensor]:
        """Returns (B, D) for a feature's lookup; for a sequence's (E, D), or (B, D) if averaged.

        Args:
            features: the features and sequences whose offsets are added; all by default.
        """
        looked_up = self.pooled(batch) if self.pooled is not None else {}
        if self.events is not None:
            looked_up |= self.events(batch)
        for lookup in looked_up if self.frozen_tables or self.offsets else ():
            # Detached before the offset is added: a strategy may train an offset on a frozen table.
            if lookup.table in self.frozen_tables:
                looked_up[lookup] = looked_up[lookup].detach()
            # The vectors of the next batch's ids are not those of a feature whose ids are left out.
            if lookup.table in self.offsets and (features is None or lookup.key in features):
                looked_up[lookup] = looked_up[lookup] + self._offset(lookup, batch)
        return looked_up

    def observe(
        self, batch: Batch, process_group: ProcessGroup = SINGLE_PROCESS, real_examples: int | None = None
    ) -> dict[str, Started]:
        """Updates the statistics of dense features and the rows of managed ids, after the batch has been predicted.

        Args:
            batch: the batch that has been predicted.
            process_group: the processes that share it.
            real_examples: how many of its first examples count; all by default.

        Returns:
            The rows that were reassigned to new ids, by table: the same on every process.
        """
        if self.dense is not None:
            self.dense.observe(batch.dense_BF[:real_examples], process_group)
        gathered = _all_gather_ids(self._ids(batch), process_group)
        return {table: self._manager(table).observe(ids) for table, ids in gathered.items()}

    def _ids(self, batch: Batch) -> dict[str, Tensor]:
        """Concatenates the ids of a batch, by table with managed ids."""
        ids: dict[str, list[Tensor]] = {}
        for lookup in (*self.bags, *chain.from_iterable(self.fields.values())):
            if _table(lookup.table) in self.managed:
                ids.setdefault(lookup.table, []).append(_values(lookup, batch))
        return {table: torch.cat(pieces) for table, pieces in ids.items()}

    def _manager(self, table: str) -> ManagedIds:
        manager = self.managed[_table(table)]
        assert isinstance(manager, ManagedIds)
        return manager

    def _with_rows(self, batch: Batch) -> Batch:
        """Returns the batch with managed ids replaced by their rows."""
        if not self.managed:
            return batch
        tables = {lookup.key: lookup.table for lookup in self.bags}
        sparse, keys = batch.sparse, batch.sparse.keys()
        values = [map_ids(self.managed, tables[key], sparse[key].values()) for key in keys]
        if keys:
            lengths, stride = sparse.lengths(), sparse.stride()
            weights = sparse.weights_or_none()
            sparse = KeyedJaggedTensor(
                keys=keys, values=torch.cat(values), lengths=lengths, stride=stride, weights=weights
            )
        sequences = {name: self._rows_of_events(name, history) for name, history in batch.sequences.items()}
        return replace(batch, sparse=sparse, sequences=sequences)

    def _rows_of_events(self, name: str, history: SequenceBatch) -> SequenceBatch:
        fields = self.fields[name]
        rows = [map_ids(self.managed, field.table, history.ids_EC[:, index]) for index, field in enumerate(fields)]
        return replace(history, ids_EC=torch.stack(rows, dim=1)) if rows else history

    def _offset(self, lookup: Lookup, batch: Batch) -> Tensor:
        """Computes the offset of a lookup: a feature's (B, D), and a sequence's field (E, D), or (B, D) if averaged."""
        offset = self.offsets[lookup.table]
        if lookup.field is None:
            rows_VD = offset.of_feature(lookup.key)
            if rows_VD is None:
                rows_VD = offset(batch.sparse[lookup.key].values(), lookup.key)
            # As many ids as examples, of a feature with at most a single id: each bag has exactly that, its mean.
            if lookup.key in self._single and rows_VD.shape[0] == batch.size:
                return rows_VD
            bags = batch.sparse[lookup.key]
            if self.weighs_ids:
                return _segment_sum(rows_VD * bags.weights().unsqueeze(1), bags.offsets().long())
            return _segment_mean(rows_VD, bags.offsets().long())
        history = batch.sequences[lookup.key]
        rows_E = history.ids_EC[:, lookup.field].contiguous()
        if self.raw_sequences:
            return offset(rows_E)
        return offset.mean(rows_E, history.offsets)

    def _numbers_of(self, sequence: str) -> EventNumbers:
        numbers = self.event_dense[_child(sequence)]
        assert isinstance(numbers, EventNumbers)
        return numbers

    def _sum(self, rows: list[Tensor], sequence: str, numbers: Tensor) -> Tensor:
        """Adds up the rows of a sequence's id fields, and the projection of its numbers."""
        if _child(sequence) in self.event_dense:
            rows = [*rows, self.event_dense[_child(sequence)](numbers)]
        total = rows[0]
        for row in rows[1:]:
            total = total + row
        return total


def _child(sequence: str) -> str:
    """Returns the name of a sequence's child module: prefixed, because torch refuses a child called `items`."""
    return f"sequence_{sequence}"


def _vector(name: str) -> str:
    """Returns the name of a vector feature's child module: prefixed for the same reason."""
    return f"feature_{name}"


def _table(name: str) -> str:
    """Returns the name of a table's child module: prefixed for the same reason."""
    return f"ids_{name}"


def map_ids(managed: nn.ModuleDict, table: str, ids: Tensor) -> Tensor:
    """Maps ids of a batch to table rows, by a featurizer's ``managed``; ids of other tables are rows already."""
    rows: Tensor = managed[_table(table)](ids) if _table(table) in managed else ids
    return rows


def _all_gather_ids(ids: dict[str, Tensor], process_group: ProcessGroup) -> dict[str, Tensor]:
    """All-gathers ids by table, so that the maps of all processes stay equal.

    It takes two collectives, however many tables there are.
    """
    if process_group.world_size == 1 or not ids:
        return ids
    counts_RT = process_group.all_gather(torch.tensor([values.numel() for values in ids.values()])).tolist()
    gathered = process_group.all_gather_rows(torch.cat([*ids.values()]), [sum(counts_T) for counts_T in counts_RT])
    pieces = torch.split(gathered, [*chain.from_iterable(counts_RT)])
    # The pieces are ordered by process, then by table: every T-th piece is the same table's.
    return {table: torch.cat(pieces[number :: len(ids)]) for number, table in enumerate(ids)}


def _values(lookup: Lookup, batch: Batch) -> Tensor:
    if lookup.field is None:
        ids: Tensor = batch.sparse[lookup.key].values()
        return ids
    return batch.sequences[lookup.key].ids_EC[:, lookup.field]


def _id_lookups(sequence: SequenceFeature) -> list[Lookup]:
    ids = [field for field in sequence.fields if field.kind == "categorical"]
    return [Lookup(sequence.name, sequence.table_name(field), index) for index, field in enumerate(ids)]


def _segment_mean(values_EG: Tensor, offsets: Tensor) -> Tensor:
    """Averages the values of each bag, zeros of an empty bag."""
    return _segment_sum(values_EG, offsets) / offsets.diff().clamp(min=1).unsqueeze(1)


def _segment_sum(values_EG: Tensor, offsets: Tensor) -> Tensor:
    """Adds up the values of each bag."""
    index = example_index(offsets, values_EG.shape[0])
    return values_EG.new_zeros(offsets.shape[0] - 1, values_EG.shape[1]).index_add_(0, index, values_EG)
