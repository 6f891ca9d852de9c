"""The shards of a table collection: initialises them, gathers whole tables from them and loads them from tables.

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

_CHUNK_ROWS = 65_536
"""Rows that are drawn together, so that a whole table is never in memory."""


@dataclass(frozen=True)
class PlacedShard:
    """A rectangle of a table: its first row and column, its size, and the rank of its process."""

    table: str
    row: int
    column: int
    rows: int
    columns: int
    owner: int

    def slice(self, whole: Tensor) -> Tensor:
        """Returns its view of a table (N, D), or of a number for each row, (N,)."""
        rows = whole[self.row : self.row + self.rows]
        return rows if rows.dim() == 1 else self.slice_columns(rows)

    def slice_columns(self, rows: Tensor) -> Tensor:
        """Returns its columns of whole rows (n, D)."""
        return rows[:, self.column : self.column + self.columns]

    def has(self, rows: Tensor) -> Tensor:
        """Returns which rows (n,) of the table are in it."""
        return (rows >= self.row) & (rows < self.row + self.rows)


def _placed_shard(table: str, metadata: ShardMetadata) -> PlacedShard:
    (row, column), (rows, columns) = metadata.shard_offsets, metadata.shard_sizes
    owner = None if metadata.placement is None else metadata.placement.rank()
    assert owner is not None
    return PlacedShard(table, row, column, rows, columns, owner)


@dataclass(frozen=True)
class LocalTensors:
    """Tensors of a shard on this process: weights (rows, columns), and the state of a fused optimizer that has any.

    Row-wise AdaGrad has a number for each row, (rows,), AdaGrad for each weight.
    """

    weight: Tensor
    state: Tensor | None


class CollectionShards:
    """The shards of a table collection.

    Args:
        path: the path of the collection in the model.
        sharded: the collection.
        configs: its tables.
        optimizer: the fused optimizer.
        rank: the rank of this process.
        in_first_group: whether this process's sharding group is the group of rank 0.
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
        # The names of a single process, so that any plan can load the state.
        self.weight_names = {table: f"{path}.embedding_bags.{table}.weight" for table in self._configs}
        self._state_names = {table: f"{path}.{table}.weight.{table}.weight.momentum_1" for table in self._configs}
        self._optimizer = optimizer
        self._rank = rank
        self._sharded = sharded
        self.shards: list[PlacedShard] = []
        for name, sharding in sharded.module_sharding_plan.items():
            self.shards += [_placed_shard(name, metadata) for metadata in sharding.sharding_spec.shards]
        self._in_first_group = in_first_group

    def local_tensors(self) -> dict[tuple[str, int, int], LocalTensors]:
        """Returns this process's shards by table, first row and first column; writing to them changes the tables."""
        tensors: dict[tuple[str, int, int], LocalTensors] = {}
        for kernel in self._kernels():
            weights = kernel.emb_module.split_embedding_weights()
            # Empty for SGD, which has no state.
            states = kernel.emb_module.split_optimizer_states() or [[]] * len(weights)
            for table, weight, state in zip(kernel.config.embedding_tables, weights, states, strict=True):
                row, column = table.local_metadata.shard_offsets
                tensors[table.name, row, column] = LocalTensors(weight, state[0] if state else None)
        return tensors

    def _kernels(self) -> Iterator[BatchedFusedEmbeddingBag]:
        for lookup in self._sharded._lookups:
            for module in lookup.modules():
                if isinstance(module, BatchedFusedEmbeddingBag):
                    yield module

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draws the initial weights of a single process: every process draws all of them, and copies its shards."""
        local_shards = list(self._local_shards())
        for config in self._configs.values():
            for first in range(0, config.num_embeddings, _CHUNK_ROWS):
                rows = min(_CHUNK_ROWS, config.num_embeddings - first)
                drawn = torch.empty(rows, config.embedding_dim)
                drawn.uniform_(config.get_weight_init_min(), config.get_weight_init_max())
                for shard, local in local_shards:
                    # Rows of the table that are both in this chunk and in the shard.
                    start, end = max(first, shard.row), min(first + rows, shard.row + shard.rows)
                    if shard.table == config.name and start < end:
                        values = shard.slice_columns(drawn[start - first : end - first])
                        local.weight[start - shard.row : end - shard.row].copy_(values)

    @torch.no_grad()
    def reset_rows(self, table: str, rows: Tensor, source_rows: Tensor, group: dist.ProcessGroup) -> None:
        """Copies the weights of ``source_rows`` (n,) to rows (n,) of a table, and zeroes their optimizer's state.

        A shard of all rows has both. For a table that is sharded by rows, an all-reduce collects ``source_rows``.

        Args:
            group: the sharding group.
        """
        if table not in self._configs or not rows.numel():
            return
        config, whole = self._configs[table], None
        local_shards = [(shard, local) for shard, local in self._local_shards() if shard.table == table]
        if any(shard.rows < config.num_embeddings for shard in self.shards if shard.table == table):
            # Every element is in a single shard of the group, so the sum with zeros is the element.
            whole = torch.zeros(rows.numel(), config.embedding_dim, device=rows.device)
            for shard, local in local_shards:
                here = shard.has(source_rows)
                shard.slice_columns(whole)[here] = local.weight[source_rows[here] - shard.row]
            dist.all_reduce(whole, group=group)
        for shard, local in local_shards:
            here = shard.has(rows)
            # Without a sum the shard has all rows, so `here` selects each of them.
            source = local.weight[source_rows] if whole is None else shard.slice_columns(whole)[here]
            local.weight[rows[here] - shard.row] = source
            if local.state is not None:
                local.state[rows[here] - shard.row] = 0

    def whole_weights(self) -> dict[str, Tensor]:
        """Gathers every table (N, D), by its name in the state dict, on the CPU of rank 0; empty on other ranks."""
        tables: dict[str, Tensor] = {}
        for shard, values in self._gather(lambda local: local.weight):
            config = self._configs[shard.table]
            name = self.weight_names[shard.table]
            whole = tables.setdefault(name, torch.empty(config.num_embeddings, config.embedding_dim))
            shard.slice(whole).copy_(values)
        return tables

    def whole_states(self) -> dict[str, Tensor]:
        """Gathers the fused optimizer's state of every table, as ``whole_weights``; empty where it has none.

        In a shard of columns, row-wise AdaGrad averages the squares of the shard's columns. The state of the whole row
        is the mean of the shards' averages, weighted by their columns.
        """
        tables: dict[str, Tensor] = {}
        if self._optimizer.name == "sgd":
            return tables
        for shard, values in self._gather(lambda local: local.state, self._optimizer.name == "rowwise_adagrad"):
            config, name = self._configs[shard.table], self._state_names[shard.table]
            if values.dim() == 1:
                whole = tables.setdefault(name, torch.zeros(config.num_embeddings))
                shard.slice(whole).add_(values * (shard.columns / config.embedding_dim))
            else:
                whole = tables.setdefault(name, torch.empty(config.num_embeddings, config.embedding_dim))
                shard.slice(whole).copy_(values)
        return tables

    @torch.no_grad()
    def load_weights(self, tables: Mapping[str, Tensor]) -> None:
        """Copies this process's shards from whole tables, where ``tables`` has them."""
        for shard, local in self._local_shards():
            whole = tables.get(self.weight_names[shard.table])
            if whole is not None:
                local.weight.copy_(shard.slice(whole))

    @torch.no_grad()
    def load_states(self, states: Mapping[str, Tensor]) -> None:
        """Copies this process's shards from whole states of the fused optimizer."""
        for shard, local in self._local_shards():
            if local.state is not None:
                local.state.copy_(shard.slice(states[self._state_names[shard.table]]))

    def _local_shards(self) -> Iterator[tuple[PlacedShard, LocalTensors]]:
        tensors = self.local_tensors()
        for shard in self.shards:
            if shard.owner == self._rank:
                yield shard, tensors[shard.table, shard.row, shard.column]

    def _gather(
        self, select: Callable[[LocalTensors], Tensor | None], per_row: bool = False
    ) -> Iterator[tuple[PlacedShard, Tensor]]:
        """Yields the tensors of its group's shards on rank 0, shard by shard to bound memory; nothing on other ranks.

        Args:
            select: selects the tensor of a shard.
            per_row: whether the tensor has a number for each row.
        """
        tensors = self.local_tensors()
        # Every process of the group iterates the shards in the same order, so sends and receives match.
        for shard in self.shards if self._in_first_group else ():
            if shard.owner == self._rank:
                local = select(tensors[shard.table, shard.row, shard.column])
                assert local is not None
                if self._rank == 0:
                    yield shard, local.cpu()
                else:
                    dist.send(local.cpu().contiguous(), 0)
            elif self._rank == 0:
                received = torch.empty(shard.rows) if per_row else torch.empty(shard.rows, shard.columns)
                dist.recv(received, shard.owner)
                yield shard, received
