"""Turns list columns into sequences and multi-valued features, with the tables of scalar columns of the same ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
from pyarrow import types

from exfm.data.column_types import list_lengths
from exfm.inspection.columns import Column
from exfm.inspection.names import AGE, HISTORY, NUMBER, TIME, hints, related, words
from exfm.inspection.times import integer_unit
from exfm.mappings import names_of

MOST_EVENTS = 100
_FEW_IDS = 20
"""Smaller sets of integers lie among each other by chance."""
_UNITS = {
    "us": "us", "ms": "ms", "s": "s", "sec": "s", "second": "s", "min": "min", "minute": "min", "h": "h", "hour": "h",
    "d": "d", "day": "d",
}  # fmt: skip


@dataclass
class Lists:
    """Describes the list columns.

    Attributes:
        sequences: names of aligned columns, by the sequence's name.
        single: columns of ids that are aligned with none.
        vectors: widths of the columns of vectors.
        owners: the scalar column whose ids a list column holds.
        times: the ``times`` of a sequence, by its name.
        left_out: reasons by column.
    """

    sequences: dict[str, list[Column]] = field(default_factory=dict)
    single: list[Column] = field(default_factory=list)
    vectors: list[tuple[Column, int]] = field(default_factory=list)
    owners: dict[str, Column] = field(default_factory=dict)
    times: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_lists(
    lists: Sequence[Column], scalars: Sequence[Column], time_R: npt.NDArray[np.float64], tomorrow_us: int
) -> Lists:
    """Groups list columns by their lengths, and finds the scalar columns whose ids they hold.

    Args:
        time_R: event times of the sampled rows, in microseconds.
    """
    roles = Lists()
    usable: list[Column] = []
    for column in lists:
        reason = _unusable(column)
        if reason:
            roles.left_out[column.name] = reason
        else:
            usable.append(column)
    for column in usable:
        owner = _owner(column, scalars)
        if owner is not None:
            roles.owners[column.name] = owner
    for aligned in _aligned(usable):
        column = aligned[0]
        width = _vector_width(aligned)
        if width:
            _add_vectors(roles, aligned, width)
            continue
        is_history = hints(column.name, HISTORY) or column.name in roles.owners
        if len(aligned) > 1 or (is_history and column.elements != "number" and column.elements != "time"):
            _add_sequence(roles, aligned, time_R, tomorrow_us)
        elif column.elements in ("integer", "string", "boolean"):
            roles.single.append(column)
        else:
            roles.left_out[column.name] = "lists of numbers of different lengths are no vectors, and name no events"
    return roles


def _vector_width(aligned: Sequence[Column]) -> int:
    """Returns the length of aligned lists that may be vectors: of numbers, all equally long; 0 for other lists."""
    if any(column.elements != "number" or hints(column.name, (*HISTORY, *AGE)) for column in aligned):
        return 0
    # Empty lists are missing vectors, so that they say nothing about the width.
    lengths = np.unique(list_lengths(aligned[0].values))
    present = lengths[lengths > 0]
    return int(present[0]) if present.size == 1 and present[0] > 1 else 0


def _add_vectors(lists: Lists, columns: Sequence[Column], width: int) -> None:
    for column in columns:
        vectors = column.values.flatten().to_numpy().reshape(-1, width)
        # A null in a list of fixed length is a missing vector; in another list it looks as an empty list does here.
        if len(vectors) < len(column.values) and not types.is_fixed_size_list(column.stored):
            lists.left_out[column.name] = (
                f"some of its lists have no number; kind: vector, width: {width} fits where these are null"
            )
        elif (vectors == vectors[0]).all():
            lists.left_out[column.name] = "all sampled vectors are equal"
        else:
            lists.vectors.append((column, width))


def _unusable(column: Column) -> str:
    if column.elements not in ("integer", "string", "boolean", "number", "time"):
        return f"its lists hold {column.elements} ({column.stored})"
    if column.is_constant:
        return "all of its lists are empty"
    if column.values.flatten().null_count:
        return "some of its lists hold nulls"
    if column.elements == "number" and not np.isfinite(column.present.to_numpy()).all():
        return "some of its lists hold infinite numbers"
    return ""


def _aligned(columns: Sequence[Column]) -> list[list[Column]]:
    """Groups columns whose lists have the same lengths in every row."""
    groups: dict[bytes, list[Column]] = {}
    for column in columns:
        # The bytes of all lengths as the key, so that each column is compared once and not with all others.
        groups.setdefault(list_lengths(column.values).tobytes(), []).append(column)
    return list(groups.values())


def _owner(column: Column, scalars: Sequence[Column]) -> Column | None:
    """Finds the scalar column among whose values most of a list's values lie."""
    best: tuple[float, Column] | None = None
    for scalar in scalars:
        if scalar.kind != column.elements or column.elements not in ("integer", "string"):
            continue
        is_related = related(column.name, scalar.name)
        # Few distinct values, or numbers, are shared by chance: then only a related name tells that the ids are the
        # same.
        if not is_related and (min(scalar.distinct, column.distinct) < _FEW_IDS or hints(column.name, (*NUMBER, *AGE))):
            continue
        share = float(pc.mean(pc.is_in(column.present, scalar.present.unique())).as_py())
        # Integers of other columns lie in the same range by chance, so that a name or a similar count has to agree.
        similar = 0.5 < (scalar.distinct + 1) / (column.distinct + 1) < 4
        if share < 0.5 or not (is_related or (share > 0.9 and similar)):
            continue
        rank = share + is_related
        if best is None or rank > best[0]:
            best = rank, scalar
    return None if best is None else best[1]


def _add_sequence(lists: Lists, aligned: list[Column], time_R: npt.NDArray[np.float64], tomorrow_us: int) -> None:
    fields: list[Column] = []
    times: dict[str, Any] | None = None
    for column in aligned:
        event_us = _event_times(column, tomorrow_us)
        if event_us is not None:
            unit, factor = event_us
            later = _share_later(column, factor, time_R)
            if later:
                for member in aligned:
                    lists.left_out[member.name] = f"events later than their row: {column.name} knows the future"
                lists.warnings.append(
                    f"{column.name}: {later:.2%} of rows have an event later than themselves: a history that knows "
                    "the future is a leak"
                )
                return
            if times is not None and times.get("holds") == "time":
                lists.left_out[column.name] = f"a second time of the events, beside {times['column']}"
            else:
                times = {"column": column.name, "holds": "time"} | ({"unit": unit} if unit else {})
            continue
        age_unit = _age_unit(column)
        if age_unit and times is None:
            times = {"column": column.name, "unit": age_unit}
        fields.append(column)
    if not fields:
        lists.left_out.update({column.name: "its events have times and nothing else" for column in aligned})
        return
    name = _common_name(names_of(fields), lists.sequences)
    lists.sequences[name] = fields
    if times is not None:
        lists.times[name] = times


def _event_times(column: Column, tomorrow_us: int) -> tuple[str, float] | None:
    """Returns the unit of a column of times and its microseconds; None for other columns."""
    if column.elements == "time":
        return "", 1.0
    if column.elements == "integer" and hints(column.name, TIME) and not hints(column.name, AGE):
        unit = integer_unit(column.present.to_numpy().astype(np.float64), tomorrow_us)
        if unit in ("s", "ms", "us"):
            return unit, {"s": 1e6, "ms": 1e3, "us": 1.0}[unit]
    return None


def _share_later(column: Column, factor: float, time_R: npt.NDArray[np.float64]) -> float:
    """Returns the share of rows that have an event later than themselves."""
    lengths = list_lengths(column.values)
    row_E = np.repeat(np.arange(lengths.size), lengths)
    values = column.values.flatten()
    event_E = values.cast("int64").to_numpy() * factor
    later_E = event_E > time_R[row_E]
    return np.unique(row_E[later_E]).size / max(1, lengths.size)


def _age_unit(column: Column) -> str:
    """Returns the unit of ages, which the name has to say; empty where a column is none."""
    if column.elements not in ("integer", "number") or not hints(column.name, AGE):
        return ""
    if float(np.min(column.present.to_numpy())) < 0:
        return ""
    return next((_UNITS[word] for word in reversed(words(column.name)) if word in _UNITS), "s")


def _common_name(names: Sequence[str], taken: Mapping[str, Any]) -> str:
    """Returns the words that the names of a sequence's columns begin or end with, or ``history``."""
    heads = [name.split("_") for name in names]
    common: list[str] = []
    for texts in zip(*heads, strict=False):
        if len(set(texts)) > 1:
            break
        common.append(texts[0])
    name = "_".join(common) if len(names) == 1 or common else "history"
    while name in taken:
        name += "_2"
    return name
