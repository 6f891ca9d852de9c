"""Reads tensors of a snapshot that is a delta: of a full snapshot, with the changed rows of all deltas since.

Legend: N changed rows, D columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from exfm.errors import RunError
from exfm.interfaces.local_shards import StateTensor, local_boxes
from exfm.storage.deltas import names_of_rows, reduced_names, tensor_of
from exfm.storage.shard_reader import Destinations, RowGrowth, ShardReader


class DeltaReader:
    """Reads tensors of a chain of snapshots as if the newest had all of them.

    Args:
        readers: of a full snapshot, and of the deltas since, oldest first.
        where: name of the newest in error messages.

    Raises:
        RunError: no snapshot has the whole of a tensor.
    """

    def __init__(self, readers: Sequence[ShardReader], where: str) -> None:
        self._readers = readers
        self._where = where
        # By tensor, the index of the newest snapshot that has the whole of it. Later ones have rows of it.
        self._whole: dict[str, int] = {}
        # In the order of the newest index, whatever is whole in it.
        for name in readers[-1].names:
            self._whole.setdefault(tensor_of(name), len(readers) - 1)
        for name in reduced_names(readers[-1].names):
            having = [index for index, reader in enumerate(readers) if name in reader.names]
            if not having:
                raise RunError(f"{where}: {name}: a delta of a tensor that no snapshot before it has")
            self._whole[name] = having[-1]

    def read(
        self,
        select: Callable[[str], bool] = lambda name: True,
        into: Destinations = lambda name: None,
        growth: RowGrowth | None = None,
    ) -> dict[str, StateTensor]:
        """Reads tensors, see ``ShardReader.read``.

        Raises:
            RunError: a file of any of the snapshots is missing or corrupt, or there is no memory. Destinations may have
                been written.
        """
        names = list(filter(select, self._whole))
        state: dict[str, StateTensor] = {}
        for index, reader in enumerate(self._readers):
            whole = {name for name in names if self._whole[name] == index}
            if whole:
                state |= reader.read(whole.__contains__, into, growth)
            self._change(reader, {name: state[name] for name in names if self._whole[name] < index}, growth)
        return {name: state[name] for name in names}

    def describe(self) -> dict[str, Tensor]:
        """Describes the tensors, see ``ShardReader.describe``."""
        described = [reader.describe() for reader in self._readers]
        return {name: described[index][name] for name, index in self._whole.items()}

    def _change(self, reader: ShardReader, state: Mapping[str, StateTensor], growth: RowGrowth | None) -> None:
        """Writes the changed rows of a delta into tensors."""
        entries = {entry for name in state for entry in names_of_rows(name)}
        if not entries:
            return
        changes = reader.read(entries.__contains__)
        for name, tensor in state.items():
            rows_N, values_ND = (changes.get(entry) for entry in names_of_rows(name))
            stored = self._readers[self._whole[name]].shape(name)
            fits = isinstance(rows_N, Tensor) and isinstance(values_ND, Tensor) and _fit(rows_N, values_ND, stored)
            if not fits or values_ND is None or values_ND.dtype != tensor.dtype:
                raise RunError(f"{self._where}: {name}: rows that changed are missing, or are no rows of it")
            assert isinstance(rows_N, Tensor)
            assert isinstance(values_ND, Tensor)
            repeats = 1
            if growth is not None and tensor.shape[0] != stored[0]:
                repeats = growth.repeats(name, stored[0], tensor.shape[0])
            for number in range(repeats):
                _write(tensor, rows_N + number * stored[0], values_ND)


def _fit(rows_N: Tensor, values_ND: Tensor, shape: Sequence[int]) -> bool:
    """Tells whether changed rows are rows of a tensor of a shape."""
    if rows_N.dtype != torch.int64 or tuple(values_ND.shape) != (*rows_N.shape, *shape[1:]) or rows_N.dim() != 1:
        return False
    return not rows_N.numel() or (int(rows_N.min()) >= 0 and int(rows_N.max()) < shape[0])


@torch.no_grad()
def _write(tensor: StateTensor, rows_N: Tensor, values_ND: Tensor) -> None:
    """Writes rows into the boxes of a tensor that this process stores."""
    for offsets, box in local_boxes(tensor).items():
        inside_N = (rows_N >= offsets[0]) & (rows_N < offsets[0] + box.shape[0])
        columns = [slice(start, start + size) for start, size in zip(offsets[1:], box.shape[1:], strict=True)]
        values = values_ND[inside_N][(slice(None), *columns)]
        box[(rows_N[inside_N] - offsets[0]).to(box.device)] = values.to(box.device)
