"""Which rows of a chunk a model sees: the ``where`` of its config, over Arrow columns."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from exfm.config.experiment import Bucket, Condition
from exfm.data.ids import id_type_ok, mix, to_u64
from exfm.errors import ConfigError

logger = logging.getLogger(__name__)

_NAMED_VALUES = 6
_MOST_VALUES = 1000
"""Values of a column that are counted; of ids there may be millions."""

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
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    unquoted = next((value for value in values if not isinstance(value, str)), None) if text else None
    if unquoted is not None:
        raise ConfigError(
            f"where.{name}: the column holds strings, and {str(unquoted).lower()} is none: quote it. What is not "
            "quoted in YAML may be read as another value: no is false, and 0110 is 72"
        )
    try:
        wanted = pa.array(values).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        raise ConfigError(f"where.{name}: the column holds {kind}, which {values} is not: {error}") from error
    return np.asarray(pc.is_in(column, value_set=wanted).to_numpy(zero_copy_only=False))


class Unseen:
    """Counts the values of the columns in ``where`` for models that have seen no row yet.

    Args:
        where: each model's conditions, by model name.
        columns: the Arrow column behind each name.
    """

    def __init__(self, where: Mapping[str, Mapping[str, Condition]], columns: Mapping[str, str]) -> None:
        self._where = {model: conditions for model, conditions in where.items() if conditions}
        self._columns = columns
        self._values: dict[str, Counter[str]] = {}
        self._rows = 0

    def add(self, rows: pa.RecordBatch, picked: Mapping[str, Tensor | None]) -> None:
        """Counts a chunk's values; models that see some of its rows are asked about no more."""
        self._where = {model: where for model, where in self._where.items() if not len(_index(picked[model]))}
        self._rows += rows.num_rows
        for name in {name for conditions in self._where.values() for name in conditions}:
            for counted in pc.value_counts(rows.column(self._columns[name])):
                counts = self._values.setdefault(name, Counter())
                value = str(counted["values"])
                if value in counts or len(counts) < _MOST_VALUES:
                    counts[value] += counted["counts"].as_py()

    def tell(self) -> None:
        """Says once which models have seen no row until now, and which values there were."""
        if not self._rows:
            return
        for model, conditions in self._where.items():
            asked = ", ".join(f"{name}: {_text(condition)}" for name, condition in conditions.items())
            held = "; ".join(f"{name} holds {_commonest(self._values[name])}" for name in conditions)
            logger.warning("models.%s.where: none of the first %d rows meets {%s}; %s", model, self._rows, asked, held)
        self._where = {}


def _index(picked: Tensor | None) -> Tensor:
    assert picked is not None, "a model with conditions has its rows picked"
    return picked


def _text(condition: Condition) -> str:
    if isinstance(condition, Bucket):
        return f"{{bucket: {condition.bucket}, of: {condition.of}}}"
    return str(list(condition)) if isinstance(condition, tuple) else str(condition)


def _commonest(counts: Counter[str]) -> str:
    named = [f"{value} ({rows})" for value, rows in counts.most_common(_NAMED_VALUES)]
    return ", ".join([*named, *(["..."] if len(counts) > _NAMED_VALUES else [])])
