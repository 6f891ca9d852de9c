"""The shards of a table collection: initialises them, and gives them to be saved and loaded.

Legend: N rows of a table, D its width, n rows that are reset.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.metadata import ShardMetadata
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.batched_embedding_kernel import BatchedFusedEmbeddingBag
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

import exfm

_CHUNK_ROWS = 65_536
"""Rows that are drawn together, so that a whole table is never in memory."""


_Boxes = dict[tuple[int, ...], Tensor]
"""Tensors of this process's shards, by the index of their first element in the table's."""


@dataclass(frozen=True)
class PlacedShard:
    """A rectangle of a table: its first row and column, its size, and the rank of its process."""

    table: str
    row: int
    column: int
    rows: int
    columns: int
    owner: int

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
        device: of the tables.
    """

    def __init__(
        self,
        path: str,
        sharded: ShardedEmbeddingBagCollection,
        configs: Sequence[EmbeddingBagConfig],
        optimizer: exfm.parallel.TableOptimizer,
        rank: int,
        device: torch.device,
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
        self._device = device

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

    def record_lookups(self, changed: exfm.parallel.ChangedRows) -> None:
        """Records the rows that this process looks up for training from now on, whoever stores them."""
        tables = exfm.parallel.tables_by_key(self._configs.values())

        def record(_: nn.Module, inputs: tuple[KeyedJaggedTensor, ...]) -> None:
            if torch.is_grad_enabled():
                changed.add_lookups(inputs[0], tables)

        self._sharded.register_forward_pre_hook(record)

    def count_writes(self) -> exfm.parallel.WriteCounts:
        """Counts torch's writes to the shards of each table that this process stores."""
        counts: exfm.parallel.WriteCounts = {table: [] for table in self._configs}
        for shard, local in self._local_shards():
            for tensor in (local.weight, local.state):
                if tensor is not None:
                    counts[shard.table].append(tensor._version)
        return counts

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

    def weights(self) -> dict[str, exfm.parallel.StateTensor]:
        """Returns this process's shards of every table, by the table's name in the state dict, without a copy."""
        boxes: dict[str, _Boxes] = {table: {} for table in self._configs}
        for shard, local in self._local_shards():
            boxes[shard.table][shard.row, shard.column] = local.weight
        return self._by_name(self.weight_names, boxes)

    def state_buffers(self) -> dict[str, exfm.parallel.StateTensor]:
        """Returns this process's shards of the fused optimizer's state, without a copy; empty where it has none.

        Shards of the same rows share their state of row-wise AdaGrad: it is read into the first of them.
        """
        return self._by_name(self._state_names, self._state_boxes())

    def share_states(self) -> None:
        """Copies the state of row-wise AdaGrad, once it is read, to the other shards of the same rows."""
        boxes = self._state_boxes()
        for shard, local in self._local_shards():
            if local.state is not None and local.state.dim() == 1:
                local.state.copy_(boxes[shard.table][shard.row,])

    @torch.no_grad()
    def states(self, group: dist.ProcessGroup) -> dict[str, exfm.parallel.StateTensor]:
        """Returns the fused optimizer's state as it is saved; empty where it has none.

        In a shard of columns, row-wise AdaGrad averages the squares of the shard's columns. The state of the whole row
        is the mean of the shards' averages, weighted by their columns: the process of the first of these shards has it.

        Args:
            group: the sharding group.
        """
        boxes = self._state_boxes()
        if self._optimizer.name == "rowwise_adagrad":
            by_rows: dict[tuple[str, int], list[PlacedShard]] = {}
            for shard in self.shards:
                by_rows.setdefault((shard.table, shard.row), []).append(shard)
            # Every process of the group has all shards in the same order, so the collectives match.
            for shards in by_rows.values():
                if len(shards) > 1:
                    first = shards[0]
                    boxes[first.table].pop((first.row,), None)
                    mean = self._mean_state(shards, group)
                    if first.owner == self._rank:
                        boxes[first.table][first.row,] = mean
        return self._by_name(self._state_names, boxes)

    def _mean_state(self, shards: Sequence[PlacedShard], group: dist.ProcessGroup) -> Tensor:
        """Averages the states of shards that have columns of the same rows; empty but in the process of the first."""
        first, tensors = shards[0], self.local_tensors()
        columns = self._configs[first.table].embedding_dim
        mean = torch.empty(first.rows if first.owner == self._rank else 0)
        # Some rows at a time, because a process may have none of these columns, and no memory for all rows.
        for start in range(0, first.rows, _CHUNK_ROWS):
            rows = slice(start, min(start + _CHUNK_ROWS, first.rows))
            summed = torch.zeros(rows.stop - rows.start, device=self._device)
            for shard in shards:
                if shard.owner == self._rank:
                    local = tensors[shard.table, shard.row, shard.column].state
                    assert local is not None
                    summed += local[rows] * (shard.columns / columns)
            dist.reduce(summed, first.owner, group=group)
            if first.owner == self._rank:
                mean[rows] = summed.cpu()
        return mean

    def _state_boxes(self) -> dict[str, _Boxes]:
        """Returns the optimizer's states of this process's shards, by table; no tables where it has none."""
        if self._optimizer.name == "sgd":
            return {}
        boxes: dict[str, _Boxes] = {table: {} for table in self._configs}
        for shard, local in self._local_shards():
            assert local.state is not None
            origin = (shard.row,) if local.state.dim() == 1 else (shard.row, shard.column)
            boxes[shard.table].setdefault(origin, local.state)
        return boxes

    def _by_name(self, names: Mapping[str, str], boxes: Mapping[str, _Boxes]) -> dict[str, exfm.parallel.StateTensor]:
        """Returns the shards of tables by the tables' names in a state."""
        per_row = self._optimizer.name == "rowwise_adagrad" and names is self._state_names
        states: dict[str, exfm.parallel.StateTensor] = {}
        for table, table_boxes in boxes.items():
            config = self._configs[table]
            shape = (config.num_embeddings,) if per_row else (config.num_embeddings, config.embedding_dim)
            states[names[table]] = exfm.parallel.LocalShards(shape, torch.float32, table_boxes)
        return states

    def _local_shards(self) -> Iterator[tuple[PlacedShard, LocalTensors]]:
        tensors = self.local_tensors()
        for shard in self.shards:
            if shard.owner == self._rank:
                yield shard, tensors[shard.table, shard.row, shard.column]
