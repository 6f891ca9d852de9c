"""The tables of one process: TorchRec's fused collection, without its detour for small batches."""

from __future__ import annotations

from torchrec import KeyedJaggedTensor, KeyedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection


class FusedTables(FusedEmbeddingBagCollection):  # type: ignore[misc]
    """Looks a batch up as it comes, where its keys are in the tables' order and one kernel serves all of them.

    TorchRec takes every batch apart by its keys and puts it together again, which takes as long as looking a small
    batch up.
    """

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Returns the bags (B, D) of every key."""
        if len(self._emb_modules) > 1 or features.keys() != self._embedding_names:
            return super().forward(features)
        ids = features.values()
        rows = self._emb_modules[0](ids, features.offsets().to(ids.dtype), None)
        return KeyedTensor(self._embedding_names, self._length_per_key, rows)
