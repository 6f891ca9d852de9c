"""Describes a column of a log by its sampled values: kind, nulls, distinct values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from exfm.data.column_types import is_list, list_lengths, plain
from exfm.sources.ids import holds_bytes

Kind = Literal["integer", "number", "string", "boolean", "time", "list", "nothing", "other"]


def classify(kind: pa.DataType) -> tuple[Kind, ...]:
    """Returns the kind of a type, and of a list also that of its elements."""
    if types.is_dictionary(kind):
        return classify(kind.value_type)
    if is_list(kind):
        return ("list", *classify(kind.value_type))
    if types.is_boolean(kind):
        return ("boolean",)
    # Databases store ids as decimals without a fraction; 18 digits fit into 64 bits.
    if types.is_integer(kind) or (types.is_decimal(kind) and kind.scale == 0 and kind.precision <= 18):
        return ("integer",)
    if types.is_floating(kind) or types.is_decimal(kind):
        return ("number",)
    if types.is_timestamp(kind):
        return ("time",)
    if types.is_null(kind):
        return ("nothing",)
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return ("string",) if is_text or holds_bytes(kind) else ("other",)


def plain_values(values: pa.Array) -> pa.Array:
    """Casts values to int64, float64, string, bytes, bool or a timestamp in microseconds, or lists of these.

    NaN becomes null. Values of other kinds become a column of nulls.
    """
    kinds = classify(values.type)
    if kinds[0] == "list":
        # Offsets from lengths, because flatten() drops the values of null lists, which the stored offsets still count.
        offsets = np.concatenate([[0], np.cumsum(list_lengths(values))])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), plain_values(values.flatten()))
    if types.is_dictionary(values.type):
        return plain_values(values.cast(values.type.value_type))
    if kinds == ("integer",):
        # Unsigned ids above 2^63 wrap: they are compared for equality alone.
        return values.cast(pa.int64(), safe=False)
    if kinds == ("number",):
        numbers = values.cast(pa.float64(), safe=False)
        # NaN is a null that has gone through pandas.
        return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)
    if kinds == ("time",):
        return values.cast(pa.timestamp("us", values.type.tz), safe=False).cast(pa.int64()).view(pa.timestamp("us"))
    if kinds == ("string",):
        return plain(values, "id")
    return values if kinds == ("boolean",) else pa.nulls(len(values), pa.null())


@dataclass(frozen=True, eq=False)
class Column:
    """Describes a column.

    Attributes:
        stored: its type in the files.
        values: the sampled values, in plain types.
        log_rows: the number of rows of the whole log.
        block_R: the number of each row's run of consecutive rows.
    """

    name: str
    stored: pa.DataType
    values: pa.Array
    log_rows: int
    block_R: npt.NDArray[np.int64]

    @property
    def kind(self) -> Kind:
        """The kind of its values."""
        return classify(self.stored)[0]

    @property
    def elements(self) -> Kind:
        """The kind of the elements of its lists."""
        return classify(self.stored)[1]

    @cached_property
    def null_share(self) -> float:
        """The share of sampled rows without a value."""
        return float(self.values.null_count / max(1, len(self.values)))

    @cached_property
    def present(self) -> pa.Array:
        """The values that are not null; of lists, their elements."""
        values = self.values.flatten() if types.is_list(self.values.type) else self.values
        return values.drop_null()

    @cached_property
    def counts(self) -> npt.NDArray[np.int64]:
        """How often each distinct value occurs in the sample."""
        if types.is_null(self.present.type):
            return np.zeros(0, np.int64)
        return np.asarray(pc.value_counts(self.present).field("counts").to_numpy(), np.int64)

    @property
    def distinct(self) -> int:
        """The number of distinct values in the sample."""
        return int(self.counts.size)

    @cached_property
    def ids(self) -> int:
        """An estimate of the distinct values in the whole log.

        Chao2 (Chao 1987): the ids that the sample lacks are estimated by those in a single run of consecutive rows, and
        in two. Runs and not rows, because an id repeats within few rows.
        """
        if len(self.values) == self.log_rows:
            return self.distinct
        block_V = self.block_R
        if types.is_list(self.values.type):
            block_V = np.repeat(self.block_R, list_lengths(self.values))
        codes = self.codes
        blocks = int(self.block_R[-1]) + 1
        # Each pair of id and run becomes an integer, because np.unique over pairs sorts far slower.
        pairs = np.unique(codes[codes >= 0] * blocks + block_V[codes >= 0])
        blocks_of_id = np.bincount(pairs // blocks)
        once, twice = int((blocks_of_id == 1).sum()), int((blocks_of_id == 2).sum())
        # The bias-corrected form, which is finite where no id is in two runs.
        unseen = once * (once - 1) / (2 * (twice + 1))
        total = len(self.present) * self.log_rows / max(1, len(self.values))
        return int(min(total, self.distinct + unseen))

    @property
    def is_unique(self) -> bool:
        """Whether each sampled row has a value that no other row has."""
        return not self.null_share and self.distinct == len(self.values)

    @property
    def is_constant(self) -> bool:
        """Whether all sampled rows are equal, nulls included."""
        if self.kind == "list":
            return self.distinct == 0
        return self.distinct == 0 or (self.distinct == 1 and not self.null_share)

    @cached_property
    def is_binary(self) -> bool:
        """Whether all values are 0 or 1, and both occur."""
        if self.kind not in ("integer", "number", "boolean") or self.distinct != 2:
            return False
        return set(np.unique(self.numbers[~np.isnan(self.numbers)])) == {0.0, 1.0}

    @cached_property
    def numbers(self) -> npt.NDArray[np.float64]:
        """The values as float64, NaN where null; of integers, numbers, booleans and times."""
        values = self.values
        if types.is_timestamp(values.type):
            values = values.view(pa.int64())
        return np.asarray(values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False))

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """An integer for each value, or for each element of the lists: equal where values are, -1 where null."""
        values = self.values.flatten() if types.is_list(self.values.type) else self.values
        encoded = values.dictionary_encode().indices
        return np.asarray(pc.fill_null(encoded, -1).to_numpy(zero_copy_only=False), np.int64)
