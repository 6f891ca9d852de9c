"""Remembers the file and row of rows while they are sorted, in 64 bits each.

Legend: N rows, F files.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.interfaces.data_source import ROW_NUMBER, Origin

I64 = npt.NDArray[np.int64]

POSITION = "exfm.position"
"""Column with the position of each row, as ``Positions.number`` returns it."""

_ROW_BITS = 40


class Positions:
    """Numbers the files of rows in the order in which they are met.

    Attributes:
        files: the names of the files.
    """

    def __init__(self) -> None:
        self.files: list[str] = []
        self._numbers: dict[str, int] = {}
        self._taken = 0

    def number(self, batch: pa.RecordBatch) -> pa.Array:
        """Returns the positions of a batch's rows: the number of the file, shifted by 40 bits, and the row in it."""
        origin = Origin.from_batch(batch)
        if origin.file not in self._numbers:
            self._numbers[origin.file] = len(self.files)
            self.files.append(origin.file)
        row_N = origin.row + np.arange(batch.num_rows)
        if ROW_NUMBER in batch.schema.names:
            row_N = batch.column(ROW_NUMBER).to_numpy()
        return pa.array((self._numbers[origin.file] << _ROW_BITS) + row_N)

    def take_new(self) -> list[str]:
        """Returns the files that were numbered since the last call."""
        new = self.files[self._taken :]
        self._taken = len(self.files)
        return new


def shift_files(position_N: I64, files: int) -> I64:
    """Returns the positions where a number of files comes before their files."""
    return position_N + (files << _ROW_BITS)


def file_and_row(position: int, files: Sequence[str]) -> str:
    """Names a row in a message."""
    return f"{files[position >> _ROW_BITS]}, row {position % (1 << _ROW_BITS)}"


def has_ties(time_N: I64, id_N: I64) -> bool:
    """Returns whether two neighbours of sorted rows have the same time and example id."""
    return bool(((time_N[1:] == time_N[:-1]) & (id_N[1:] == id_N[:-1])).any())


def sort_keys(time_N: I64, id_N: I64, position_N: I64, files: Sequence[str]) -> I64:
    """Returns the order of rows by time, example id, name of the file, and row."""
    # Ranks of names, because files are numbered as they are met, by each process.
    rank_F = np.unique(np.array(files), return_inverse=True)[1]
    return np.lexsort((position_N & ((1 << _ROW_BITS) - 1), rank_F[position_N >> _ROW_BITS], id_N, time_N))
