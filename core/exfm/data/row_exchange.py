"""Puts the rows that the processes of a job have read into the order of the stream, and sends each to its process.

Each process reads a portion of a window. In a round it offers rows up to a key (time and example id): its last row that
waits, or the end of its portion. All rows up to the lowest of these keys are known, so their order is. Row i of the
window goes to process ``i % R``.

Legend: N rows of this process in a round, G rows of all processes, M rows that this process receives, R processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from exfm.data.column_types import IdKind
from exfm.data.id_kinds import add_kinds
from exfm.data.positions import POSITION, file_and_row, has_ties, shift_files, sort_keys
from exfm.data.prefetcher import Prefetcher
from exfm.data.repeats import REPEATED, SeenIds, WindowIds
from exfm.data.row_codec import decode_rows, encode_rows
from exfm.data.skips import Skips
from exfm.data.sorted_rows import LATEST, Key, News, SortedRows, WaitingRows, join_rows
from exfm.data.take_rows import take_rows
from exfm.errors import ConfigError, NotYetError, RunError
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.schema import FeatureSchema
from exfm.sources.ids import mix

I64 = npt.NDArray[np.int64]

_ROUND_ROWS = 1 << 14
"""Rows that a process offers in a round: 16 MB of rows of 1 kB."""

# Independent of the hashes of table rows, buckets, groups and remembered ids.
_KEEPER_SALT = 5

_ERRORS = {error.__name__: error for error in (ConfigError, NotYetError)}


class Round(NamedTuple):
    """The rows that this process receives in a round, and the number of rows of all processes."""

    rows: pa.RecordBatch | None
    size: int


class RowExchange:
    """Exchanges the rows of a window. Every process of the job calls it alike, from the thread of its collectives.

    Args:
        ids: finds repeated example ids; None to accept them. A process keeps the ids whose hash is its share.
        id_kinds: the kind of each column of ids until now; updated.
        skip: whether repeated example ids are left out and counted, or stop the run.
        skips: counts the rows read and left out by all processes.

    Attributes:
        ids_of_all: after the last round, those example ids of the window that later windows may have to know.
    """

    def __init__(
        self,
        process_group: ProcessGroup,
        schema: FeatureSchema,
        ids: WindowIds | None,
        id_kinds: dict[str, IdKind],
        skip: bool,
        skips: Skips,
    ) -> None:
        self.id_kinds = id_kinds
        self.skips = skips
        self.ids_of_all = np.zeros(0, np.uint64)
        self._process_group, self._schema = process_group, schema
        self._ids, self._skip = ids, skip
        self._files: list[list[str]] = [[] for _ in range(process_group.world_size)]
        self._waiting = WaitingRows(schema)
        self._start = 0
        self._ended = False
        self._error: Exception | None = None

    def rounds(self, portion: Prefetcher[SortedRows]) -> Iterator[Round]:
        """Yields the rounds of a window, as many on every process.

        Raises:
            ConfigError: a process has read a bad row; ids have another kind than before; an id is repeated.
            RunError: a process could not read its portion.
        """
        is_last = False
        while not is_last:
            limit = self._agree(self._read(portion))
            is_last = limit == (LATEST, LATEST)
            yield self._exchange(limit)
        if self._ids is not None:
            sample = SeenIds()
            for ids in self._ids.all():
                sample.add(ids)
            self.ids_of_all = self._gather(sample.ids().view(np.int64)).view(np.uint64)

    def _read(self, portion: Prefetcher[SortedRows]) -> News:
        """Takes rows until some wait, and more as long as they are ready."""
        news = News()
        waiting = self._waiting
        while not self._ended and waiting.size < _ROUND_ROWS and (not waiting.size or portion.is_ready):
            try:
                following = next(portion, None)
            except Exception as error:
                # Raised once all processes have heard of it, because they would wait for this process.
                self._error = error
                news.error = (type(error).__name__, str(error))
                break
            if following is None:
                self._ended = True
            else:
                waiting.add(following.rows)
                news.add(following.news)
        return news

    def _agree(self, news: News) -> Key:
        """Tells all processes the news, and returns the key up to which all rows are known."""
        until = (LATEST, LATEST)
        if self._waiting.size and (not self._ended or self._waiting.size > _ROUND_ROWS):
            until = self._waiting.key(min(self._waiting.size, _ROUND_ROWS) - 1)
        encoded = news.encode()
        said_R4 = self._process_group.all_gather(torch.tensor([len(encoded), news.rows, *until])).numpy()
        if said_R4[:, 0].any():
            self._hear(list(map(News.decode, self._process_group.all_gather_bytes(encoded))))
        self.skips.read(int(said_R4[:, 1].sum()))
        first = np.lexsort((said_R4[:, 3], said_R4[:, 2]))[0]
        return int(said_R4[first, 2]), int(said_R4[first, 3])

    def _hear(self, news_R: list[News]) -> None:
        if self._error is not None:
            raise self._error
        for rank, news in enumerate(news_R):
            if news.error is not None:
                name, text = news.error
                raise _ERRORS.get(name, RunError)(text if name in _ERRORS else f"process {rank}: {name}: {text}")
        for files, news in zip(self._files, news_R, strict=True):
            files += news.files
            add_kinds(self.id_kinds, news.kinds, self._schema)
            for column, reason, rows, message in news.left_out:
                self.skips.add(column, reason, rows, message)

    def _exchange(self, limit: Key) -> Round:
        """Sends the rows up to a key to their processes, and receives those of this process."""
        rows, time_N, id_N = self._waiting.take(limit)
        count, rank = self._process_group.world_size, self._process_group.rank
        counts = self._process_group.all_gather(torch.tensor(id_N.size)).tolist()
        if not sum(counts):
            return Round(None, 0)
        keys_G2 = self._gather_rows(np.stack([time_N, id_N], axis=1), counts)
        order_G = self._first_rows(rows, keys_G2[:, 0], keys_G2[:, 1], counts)
        source_G = np.repeat(np.arange(count), counts)[order_G]
        owner_G = (self._start + np.arange(order_G.size)) % count
        self._start += order_G.size
        mine_G = source_G == rank
        sent = self._encode(rows, order_G[mine_G] - sum(counts[:rank]), owner_G[mine_G])
        received = [decode_rows(data) for data in self._process_group.all_to_all_bytes(sent) if len(data)]
        if not received:
            return Round(None, order_G.size)
        # Rows come rank by rank, and of each rank in order: the stable sort says which is which row of the stream.
        by_rank_M = np.argsort(source_G[owner_G == rank], kind="stable")
        position_M = np.empty_like(by_rank_M)
        position_M[by_rank_M] = np.arange(by_rank_M.size)
        return Round(take_rows(join_rows(received), position_M), order_G.size)

    def _encode(self, rows: pa.RecordBatch | None, index_N: I64, owner_N: I64) -> list[memoryview]:
        """Encodes rows for each process, in order."""
        count = self._process_group.world_size
        if rows is None:
            return [memoryview(b"")] * count
        taken = take_rows(rows.drop_columns([POSITION]), index_N[np.argsort(owner_N, kind="stable")])
        ends = np.cumsum(np.bincount(owner_N, minlength=count)).tolist()
        return [memoryview(encode_rows(taken.slice(a, b - a))) for a, b in zip([0, *ends], ends, strict=False)]

    def _first_rows(self, rows: pa.RecordBatch | None, time_G: I64, id_G: I64, counts: list[int]) -> I64:
        """Returns the order of all processes' rows, without those whose example id came before.

        Raises:
            ConfigError: there are such rows, and ``skip`` is off.
        """
        order_G: I64 = np.lexsort((id_G, time_G))
        position_G = None
        if has_ties(time_G[order_G], id_G[order_G]):
            position_G = self._positions(rows, counts)
            order_G = sort_keys(time_G, id_G, position_G, list(chain.from_iterable(self._files)))
        repeated = self._repeated(id_G[order_G])
        if not repeated.size:
            return order_G
        if position_G is None:
            position_G = self._positions(rows, counts)
        first = order_G[repeated[0]]
        where = file_and_row(int(position_G[first]), list(chain.from_iterable(self._files)))
        message = f"{where}: {self._schema.example_id}: {REPEATED}"
        if not self._skip:
            raise ConfigError(f"{message}. Mend the data, or set stream.on_bad_row=skip to leave such rows out.")
        self.skips.add(self._schema.example_id, REPEATED, repeated.size, message)
        self.skips.read(0)  # the rows are counted already; too many may be left out now
        return np.delete(order_G, repeated)

    def _positions(self, rows: pa.RecordBatch | None, counts: list[int]) -> I64:
        """All-gathers the positions of rows; files are numbered over all processes."""
        position_N = np.zeros(0, np.int64)
        if rows is not None:
            before = sum(map(len, self._files[: self._process_group.rank]))
            position_N = shift_files(rows.column(POSITION).to_numpy(), before)
        return self._gather_rows(position_N, counts)

    def _repeated(self, id_G: I64) -> I64:
        """Returns the indices of the rows whose example id came before."""
        if self._ids is None:
            return np.zeros(0, np.int64)
        key_G = id_G.view(np.uint64)
        # Each process remembers and compares its share of the ids.
        share = mix(key_G, _KEEPER_SALT) % np.uint64(self._process_group.world_size)
        kept = np.flatnonzero(share == self._process_group.rank)
        return np.sort(self._gather(kept[self._ids.repeated(key_G[kept], np.ones(kept.size, bool))]))

    def _gather(self, values: I64) -> I64:
        """All-gathers values, of which processes have different numbers."""
        counts = self._process_group.all_gather(torch.tensor(values.size)).tolist()
        return self._gather_rows(values, counts) if sum(counts) else values

    def _gather_rows(self, values: I64, counts: list[int]) -> I64:
        # Copied, because values may lie in memory that cannot be written, which torch warns about.
        gathered: I64 = self._process_group.all_gather_rows(torch.from_numpy(values.copy()), counts).numpy()
        return gathered
