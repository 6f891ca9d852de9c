"""Which rows of a chunk a model sees: the ``where`` of its config, over Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from exfm.config.experiment import Bucket, Condition
from exfm.data.ids import id_type_ok, mix, to_u64
from exfm.errors import ConfigError

BUCKET_SALT = 1
"""Another hash than the one that picks table rows: a bucket of users is not a stretch of a table."""


def rows_where(rows: pa.RecordBatch, where: Mapping[str, Condition], columns: Mapping[str, str]) -> Tensor | None:
    """Indices of the rows that meet every condition (int64), or None where there is no condition.

    Args:
        where: a value, values or a bucket by the name a user gave.
        columns: the Arrow column behind each name.
    """
    if not where:
        return None
    kept = np.ones(rows.num_rows, bool)
    for name, condition in where.items():
        column = rows.column(columns[name])
        if isinstance(condition, Bucket):
            if not id_type_ok(column.type):
                raise ConfigError(
                    f"where.{name}: a bucket is one of integers or strings; the column holds {column.type}"
                )
            wanted = condition.bucket if isinstance(condition.bucket, tuple) else (condition.bucket,)
            buckets = mix(to_u64(column), BUCKET_SALT) % np.uint64(condition.of)
            kept &= np.isin(buckets, np.array(wanted, np.uint64)) & column.is_valid().to_numpy(zero_copy_only=False)
        else:
            values = condition if isinstance(condition, tuple) else (condition,)
            kept &= _is_in(column, list(values), name)
    return torch.from_numpy(np.flatnonzero(kept))


def _is_in(column: pa.Array, values: list[bool | int | str], name: str) -> np.ndarray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    try:
        wanted = pa.array(values).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ConfigError(f"where.{name}: the column holds {kind}, which {values} is not: {error}") from error
    return np.asarray(pc.is_in(column, value_set=wanted).to_numpy(zero_copy_only=False))
