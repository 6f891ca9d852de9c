"""The shards of a sharded table collection: their first values, and whole tables from them and back.

Legend: N rows of a table, D its width, n rows that are reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._shard.metadata import ShardMetadata
from torchrec import EmbeddingBagConfig
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

import exfm

_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Shard:
    """A rectangle of a table: rows and columns from here on, so many of them, on a process."""

    table: str
    row: int
    column: int
    rows: int
    columns: int
    owner: int

    def of(self, whole: Tensor) -> Tensor:
        """Its part of a table (N, D), or of one number for each row, (N,)."""
        part = whole[self.row : self.row + self.rows]
        return part if part.dim() == 1 else self.columns_of(part)

    def columns_of(self, rows: Tensor) -> Tensor:
        """Its columns of whole rows (n, D)."""
        return rows[:, self.column : self.column + self.columns]

    def has(self, rows: Tensor) -> Tensor:
        """Which rows (n,) of the table it has a part of."""
        return (rows >= self.row) & (rows < self.row + self.rows)


def _shard_of(table: str, metadata: ShardMetadata) -> Shard:
    (row, column), (rows, columns) = metadata.shard_offsets, metadata.shard_sizes
    owner = None if metadata.placement is None else metadata.placement.rank()
    assert owner is not None
    return Shard(table, row, column, rows, columns, owner)


@dataclass(frozen=True)
class Kept:
    """What a process keeps of a shard: weights (rows, columns), and the state of a fused optimizer that has any.

    Row-wise AdaGrad has one number for each row, (rows,), AdaGrad one for each weight.
    """

    weight: Tensor
    state: Tensor | None


class Shards:
    """The shards of one collection.

    Args:
        path: where the model has it.
        sharded: the collection.
        configs: its tables.
        optimizer: the fused one.
        rank: this process's number.
        in_first_group: whether its sharding group is the one of the first process.
    """

    def __init__(
        self,
        path: str,
        sharded: ShardedEmbeddingBagCollection,
        configs: Sequence[EmbeddingBagConfig],
        optimizer: exfm.parallel.TableOptimizer,
        rank: int,
        in_first_group: bool,
    ) -> None:
        self._configs = {config.name: config for config in configs}
        # As one process names them.
        self.weight_names = {table: f"{path}.embedding_bags.{table}.weight" for table in self._configs}
        self._state_names = {table: f"{path}.{table}.weight.{table}.weight.momentum_1" for table in self._configs}
        self._optimizer = optimizer
        self._rank = rank
        self._sharded = sharded
        self.shards = [
            _shard_of(name, part)
            for name, sharding in sharded.module_sharding_plan.items()
            for part in sharding.sharding_spec.shards
        ]
        self._in_first_group = in_first_group

    def kept(self) -> dict[tuple[str, int, int], Kept]:
        """What this process keeps, by table, first row and first column; writing to it changes the tables."""
        found = {}
        for kernel in self._kernels():
            weights = kernel.emb_module.split_embedding_weights()
            states = kernel.emb_module.split_optimizer_states() or [[]] * len(weights)
            for table, weight, state in zip(kernel.config.embedding_tables, weights, states, strict=True):
                row, column = table.local_metadata.shard_offsets
                found[table.name, row, column] = Kept(weight, state[0] if state else None)
        return found

    def _kernels(self) -> Iterator[BatchedFusedEmbeddingBag]:
        for lookup in self._sharded._lookups:
            for module in lookup.modules():
                if isinstance(module, BatchedFusedEmbeddingBag):
                    yield module

    @torch.no_grad()
    def start(self) -> None:
        """Sets the weights that a single process would start with: the same numbers, drawn in the same order."""
        own = list(self._own())
        for config in self._configs.values():
            for first in range(0, config.num_embeddings, _ROWS_AT_ONCE):
                rows = min(_ROWS_AT_ONCE, config.num_embeddings - first)
                drawn = torch.empty(rows, config.embedding_dim)
                drawn.uniform_(config.get_weight_init_min(), config.get_weight_init_max())
                for shard, kept in own:
                    start, end = max(first, shard.row), min(first + rows, shard.row + shard.rows)
                    if shard.table == config.name and start < end:
                        part = drawn[start - first : end - first, shard.column : shard.column + shard.columns]
                        kept.weight[start - shard.row : end - shard.row].copy_(part)

    @torch.no_grad()
    def reset_rows(self, table: str, rows: Tensor, source_rows: Tensor, group: dist.ProcessGroup) -> None:
        """Copies the weights of ``source_rows`` (n,) to rows (n,) of a table, and zeroes their optimizer's state.

        A shard of all rows has both. Of a table that is cut by rows, the processes of a group sum up their parts of
        ``source_rows``.

        Args:
            group: the sharding group.
        """
        if table not in self._configs or not rows.numel():
            return
        config, whole = self._configs[table], None
        own = [(shard, kept) for shard, kept in self._own() if shard.table == table]
        if any(shard.rows < config.num_embeddings for shard in self.shards if shard.table == table):
            whole = torch.zeros(rows.numel(), config.embedding_dim, device=rows.device)
            for shard, kept in own:
                here = shard.has(source_rows)
                shard.columns_of(whole)[here] = kept.weight[source_rows[here] - shard.row]
            dist.all_reduce(whole, group=group)
        for shard, kept in own:
            here = shard.has(rows)
            taken = kept.weight[source_rows] if whole is None else shard.columns_of(whole)[here]
            kept.weight[rows[here] - shard.row] = taken
            if kept.state is not None:
                kept.state[rows[here] - shard.row] = 0

    def whole_weights(self) -> dict[str, Tensor]:
        """Every table (N, D) by its name in the state dict, on the CPU of the first process; nothing on the others."""
        tables: dict[str, Tensor] = {}
        for shard, part in self._collected(lambda kept: kept.weight):
            config = self._configs[shard.table]
            name = self.weight_names[shard.table]
            whole = tables.setdefault(name, torch.empty(config.num_embeddings, config.embedding_dim))
            shard.of(whole).copy_(part)
        return tables

    def whole_states(self) -> dict[str, Tensor]:
        """The fused optimizer's state of every table, as ``whole_weights``; nothing where it has none.

        Cut by columns, row-wise AdaGrad averages the squares of a shard's columns; over the whole row it is their mean.
        """
        tables: dict[str, Tensor] = {}
        if self._optimizer.name == "sgd":
            return tables
        for shard, part in self._collected(lambda kept: kept.state, self._optimizer.name == "rowwise_adagrad"):
            config, name = self._configs[shard.table], self._state_names[shard.table]
            if part.dim() == 1:
                whole = tables.setdefault(name, torch.zeros(config.num_embeddings))
                shard.of(whole).add_(part * (shard.columns / config.embedding_dim))
            else:
                whole = tables.setdefault(name, torch.empty(config.num_embeddings, config.embedding_dim))
                shard.of(whole).copy_(part)
        return tables

    @torch.no_grad()
    def load_weights(self, tables: Mapping[str, Tensor]) -> None:
        """Takes its shards out of whole tables, of those that are given."""
        for shard, kept in self._own():
            whole = tables.get(self.weight_names[shard.table])
            if whole is not None:
                kept.weight.copy_(shard.of(whole))

    @torch.no_grad()
    def load_states(self, states: Mapping[str, Tensor]) -> None:
        """Takes its shards out of the fused optimizer's whole states."""
        for shard, kept in self._own():
            if kept.state is not None:
                kept.state.copy_(shard.of(states[self._state_names[shard.table]]))

    def _own(self) -> Iterator[tuple[Shard, Kept]]:
        kept = self.kept()
        for shard in self.shards:
            if shard.owner == self._rank:
                yield shard, kept[shard.table, shard.row, shard.column]

    def _collected(
        self, part_of: Callable[[Kept], Tensor | None], per_row: bool = False
    ) -> Iterator[tuple[Shard, Tensor]]:
        """On the first process what those of its group keep, one shard after the other; nothing elsewhere.

        Args:
            per_row: whether it is one number for each row.
        """
        kept = self.kept()
        for shard in self.shards if self._in_first_group else ():
            if shard.owner == self._rank:
                own = part_of(kept[shard.table, shard.row, shard.column])
                assert own is not None
                if self._rank == 0:
                    yield shard, own.cpu()
                else:
                    dist.send(own.cpu().contiguous(), 0)
            elif self._rank == 0:
                part = torch.empty(shard.rows) if per_row else torch.empty(shard.rows, shard.columns)
                dist.recv(part, shard.owner)
                yield shard, part
