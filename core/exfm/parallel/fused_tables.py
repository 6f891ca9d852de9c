"""The tables of a process: TorchRec's fused collections, called on several threads without TorchRec's regrouping.

Legend: B bags of a key, W columns of a kernel: its keys times their width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.fused import FusedOptimizerModule
from torchrec.optim.keyed import CombinedOptimizer

from exfm.parallel.changed_rows import ChangedRows, tables_by_key
from exfm.parallel.threads import worker_threads

_MIN_THREAD_TABLES = 8
"""Tables of a thread at least, because the work of a kernel should take longer than its call."""

_THREADED_IDS = 8_192
"""Ids of a batch from which on kernels run in parallel; a call in a thread has a fixed cost (benchmarks/NOTES.md)."""

Lookup = Callable[[], Tensor]


class FusedTables(nn.Module, FusedOptimizerModule):  # type: ignore[misc]
    """Tables whose optimizer runs in the backward pass, under TorchRec's names.

    FBGEMM's kernels use a single thread on a CPU, so many tables are distributed over several threads.

    Args:
        configs: the tables, grouped by their pooling.
        optimizer: the class of the tables' optimizer.
        options: keyword arguments of the optimizer.
        device: the device of the tables.
        is_weighted: whether ids have weights, by which their rows are multiplied.

    Attributes:
        changed: receives the rows that lookups with gradients change; None where nobody asks.
    """

    def __init__(
        self,
        configs: list[EmbeddingBagConfig],
        optimizer: type[torch.optim.Optimizer],
        options: dict[str, Any],
        device: torch.device,
        is_weighted: bool = False,
    ) -> None:
        super().__init__()
        self._is_weighted = is_weighted
        self._threads = 1
        if device.type == "cpu":
            self._threads = max(1, min(torch.get_num_threads(), len(configs) // _MIN_THREAD_TABLES))
        bounds = [len(configs) * number // self._threads for number in range(self._threads + 1)]
        collections = [
            FusedEmbeddingBagCollection(configs[start:stop], optimizer, options, is_weighted, device=device)
            for start, stop in pairwise(bounds)
        ]
        self.embedding_bags = nn.ModuleDict()
        # Lists are not registered, so that no module has two names in the state dict.
        self._kernels: list[Any] = []
        for collection in collections:
            self.embedding_bags.update(collection.embedding_bags)
            self._kernels += collection._emb_modules
        self._optimizer = CombinedOptimizer([("", collection.fused_optimizer()) for collection in collections])
        self.changed: ChangedRows | None = None
        self._keys: list[str] = []
        self._tables = tables_by_key(configs)
        self._widths: list[int] = []
        for config in configs:
            self._keys += config.feature_names
            self._widths += [config.embedding_dim] * len(config.feature_names)
        # An autograd function without an input that requires gradients would not be called in the backward pass.
        self._anchor = torch.empty(0, requires_grad=True)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Returns the bags (B, D) of every key."""
        if features.keys() != self._keys:
            features = features.permute(list(map(features.keys().index, self._keys)))
        ids = features.values()
        if self.changed is not None and torch.is_grad_enabled():
            # The backward pass updates these rows and no others.
            self.changed.add_lookups(features, self._tables)
        offsets = features.offsets().to(ids.dtype)  # FBGEMM requires ids and offsets of the same type
        weights = features.weights() if self._is_weighted else None
        if len(self._kernels) == 1:
            return self._columns(self._kernels[0](ids, offsets, weights))
        lookups = self._lookups(ids, offsets, weights, features.stride())
        if self._threads == 1 or ids.numel() < _THREADED_IDS:
            columns = [lookup() for lookup in lookups]
        elif torch.is_grad_enabled():
            columns = _ParallelLookups.apply(self._anchor, lookups, self._threads)  # type: ignore[no-untyped-call]
        else:
            columns = list(worker_threads(self._threads).map(_without_gradients, lookups))
        return self._columns(torch.cat(columns, dim=1))

    def fused_optimizer(self) -> CombinedOptimizer:
        """The optimizer of all tables."""
        return self._optimizer

    def _columns(self, rows_BW: Tensor) -> KeyedTensor:
        return KeyedTensor(self._keys, self._widths, rows_BW)

    def _lookups(self, ids: Tensor, offsets: Tensor, weights: Tensor | None, stride: int) -> list[Lookup]:
        """Prepares each kernel's lookup of its keys."""
        lookups: list[Lookup] = []
        first = 0
        for kernel in self._kernels:
            end = first + len(kernel._feature_table_map)
            # Bags are ordered by key, so the keys of a kernel are a slice of the offsets and of the ids.
            bounds = offsets[first * stride : end * stride + 1]
            start, stop = int(bounds[0]), int(bounds[-1])
            kernel_weights = None if weights is None else weights[start:stop]
            lookups.append(partial(kernel, ids[start:stop], bounds - start, kernel_weights))
            first = end
        return lookups


class _ParallelLookups(torch.autograd.Function):
    """Runs lookups in parallel, forward and backward; each has a separate graph, which ends in its tables."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, lookups: list[Lookup], threads: int) -> tuple[Tensor, ...]:
        ctx.threads = threads
        ctx.columns = list(worker_threads(threads).map(_with_gradients, lookups))
        # Detached, so that the caller's graph ends here and the graphs of the lookups stay separate.
        return tuple(columns_BW.detach() for columns_BW in ctx.columns)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        list(worker_threads(ctx.threads).map(torch.autograd.backward, ctx.columns, gradients))
        return None, None, None


def _with_gradients(lookup: Lookup) -> Tensor:
    # Set here, because gradient mode is a setting of the thread, and autograd functions run without gradients.
    with torch.enable_grad():
        return lookup()


def _without_gradients(lookup: Lookup) -> Tensor:
    with torch.no_grad():
        return lookup()
