"""Converts a column of teachers' embeddings, which come with the rows to predict, to a tensor of the program.

Legend: B rows, K width of an embedding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from exfm.errors import ConfigError


def embedding_rows(column: pa.ListArray, name: str, width: int) -> npt.NDArray[Any]:
    """Converts embeddings to float32 (B, K); a null is a row of NaN.

    Args:
        column: lists of numbers.
        name: the column's name, for messages.
        width: K.

    Raises:
        ConfigError: an embedding has another width, or a number that is missing or not finite.
    """
    present_B = column.is_valid().to_numpy(zero_copy_only=False)
    lengths_B = pc.list_value_length(column).fill_null(width).to_numpy(zero_copy_only=False)
    if (lengths_B != width).any():
        row = int((lengths_B != width).argmax())
        raise ConfigError(
            f"row {row}: {name}: the model reads embeddings of {width} numbers, given: {lengths_B[row]}; give null "
            "where the teacher has none"
        )
    result_BK = np.full((len(column), width), np.nan, np.float32)
    # `flatten` leaves out the values under nulls; a null inside a list becomes NaN.
    values = column.flatten().cast(pa.float32(), safe=False).to_numpy(zero_copy_only=False)
    result_BK[present_B] = values.reshape(-1, width)
    wrong_B = present_B & ~np.isfinite(result_BK).all(axis=1)
    if wrong_B.any():
        raise ConfigError(
            f"row {int(wrong_B.argmax())}: {name}: a number is missing or not finite; give null where the teacher has "
            "no embedding"
        )
    return result_BK
