"""Picks the rows of a chunk that a model sees: evaluates the ``where`` of its config over Arrow columns."""

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
from exfm.errors import ConfigError
from exfm.sources.ids import example_ids, id_type_ok, mix, to_u64

logger = logging.getLogger(__name__)

# Values of a column named in a warning: as many as fit on a line.
_NAMED_VALUES = 6
_MOST_VALUES = 1000
"""Distinct values of a column that are counted, because a column of ids may have millions."""

BUCKET_SALT = 1
"""Differs from the salt of table rows (0), because a bucket of users must not be a stretch of a table."""


def rows_where(
    rows: pa.RecordBatch, where: Mapping[str, Condition], columns: Mapping[str, str], example_id: str = ""
) -> Tensor | None:
    """Returns the indices of the rows that meet every condition (int64), or None where there is no condition.

    Args:
        where: a value, values or a bucket by name of the column, as the user writes it.
        columns: the Arrow column behind each name.
        example_id: the column of example ids.
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
            buckets = mix(to_u64(column), BUCKET_SALT) % np.uint64(condition.of)
            # to_u64 maps nulls to 0, and a missing id is in no bucket: hence the mask of valid values.
            kept &= np.isin(buckets, np.array(condition.bucket, np.uint64))
            kept &= column.is_valid().to_numpy(zero_copy_only=False)
        else:
            values = condition if isinstance(condition, tuple) else (condition,)
            if columns[name] == example_id and all(isinstance(value, str) for value in values):
                # Ids that are no integers are hashed in the rows.
                values = tuple(example_ids(pa.array(values)).to_pylist())
            kept &= _is_in(column, list(values), name)
    return torch.from_numpy(np.flatnonzero(kept))


def _is_in(column: pa.Array, values: list[bool | int | str], name: str) -> np.ndarray:
    """Returns a mask of the rows whose value is among ``values``."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    # Arrow would cast false and 72 to text, and then meet no row: the user forgot the quotes.
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        for value in values:
            if not isinstance(value, str):
                raise ConfigError(
                    f"where.{name}: the column holds strings, and {str(value).lower()} is none: quote it. What is not "
                    "quoted in YAML may be read as another value: no is false, and 0110 is 72"
                )
    try:
        value_set = pa.array(values).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        # Booleans are read as integers.
        quoted = {"true", "false"} & {str(value).lower() for value in values if isinstance(value, str)}
        hint = "; booleans are written without quotes" if quoted else ""
        raise ConfigError(f"where.{name}: the column holds {kind}, which {values} is not: {error}{hint}") from error
    return np.asarray(pc.is_in(column, value_set=value_set).to_numpy(zero_copy_only=False))


class UnmetConditions:
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
        """Counts a chunk's values, and forgets the models that see some of its rows."""
        self._where = {model: where for model, where in self._where.items() if not _count(picked[model])}
        self._rows += rows.num_rows
        names = set[str]().union(*self._where.values())
        for name in names:
            for counted in pc.value_counts(rows.column(self._columns[name])):
                counts = self._values.setdefault(name, Counter())
                value = str(counted["values"])
                if value in counts or len(counts) < _MOST_VALUES:
                    counts[value] += counted["counts"].as_py()

    def warn(self) -> None:
        """Logs once which models have seen no row until now, and the values that the columns hold."""
        if not self._rows:
            return
        for model, conditions in self._where.items():
            asked = ", ".join(f"{name}: {_as_yaml(condition)}" for name, condition in conditions.items())
            held = "; ".join(f"{name} holds {_commonest(self._values[name])}" for name in conditions)
            logger.warning("models.%s.where: none of the first %d rows meets {%s}; %s", model, self._rows, asked, held)
        self._where = {}


def _count(picked: Tensor | None) -> int:
    assert picked is not None, "a model with conditions has its rows picked"
    return len(picked)


def _as_yaml(condition: Condition) -> str:
    """Writes a condition as the user does."""
    if isinstance(condition, Bucket):
        return f"{{bucket: {condition.bucket}, of: {condition.of}}}"
    if isinstance(condition, tuple):
        return str(list(condition))
    return str(condition)


def _commonest(counts: Counter[str]) -> str:
    """Lists the commonest values with their counts."""
    named = [f"{value} ({rows})" for value, rows in counts.most_common(_NAMED_VALUES)]
    if len(counts) > _NAMED_VALUES:
        named.append("...")
    return ", ".join(named)
