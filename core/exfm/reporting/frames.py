"""Lists the figures of results.json as flat records, and builds data frames of records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from exfm.extras import import_extra
from exfm.reporting.formatting import stored_gain_share

Json = Mapping[str, Any]

_GAIN = ("control", "ne_gain_percent", "gain_low", "gain_high", "gain_share")


def figure_records(results: Json) -> Iterator[dict[str, Any]]:
    """Yields the overall figures of each model and task, with its gain over its control where it has a control.

    Nested figures have a dot in their names, such as ``recall_at.10``. Of several teachers the gain share is that of
    the first, as in the table of a run.
    """
    gains: dict[tuple[str, str], Json] = {}
    for gain in results["gains"]:
        gains.setdefault((gain["model"], gain["task"]), gain)
    for model, entry in results["models"].items():
        for task, figures in entry["tasks"].items():
            record = {"model": model, "task": task, **_flat(figures)}
            gain = gains.get((model, task))
            if gain is not None:
                low, high = gain["interval95"] or (None, None)
                values = (gain["control"], gain["ne_gain_percent"], low, high, stored_gain_share(gain))
                record |= dict(zip(_GAIN, values, strict=True))
            yield record


def window_records(results: Json) -> Iterator[dict[str, Any]]:
    """Yields the figures of each model, task and window, in this order."""
    for model, entry in results["models"].items():
        for task, figures in entry["tasks"].items():
            for window in figures["windows"]:
                yield {"model": model, "task": task, **_flat(window)}


def _flat(figures: Json, prefix: str = "") -> dict[str, Any]:
    """Returns all figures but the lists, those of nested sections under names with a dot."""
    flat: dict[str, Any] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            flat[f"{prefix}{name}"] = value
    return flat


def data_frame(records: Iterator[dict[str, Any]] | Sequence[dict[str, Any]], index: Sequence[str]) -> Any:
    """Builds a pandas DataFrame with a row for each record.

    Args:
        index: the names of the index's levels; they are keys of every record.

    Raises:
        ConfigError: pandas is not installed.
    """
    pandas = import_extra("pandas", "pandas", "pandas")
    rows = list(records)
    if not rows:
        return pandas.DataFrame(columns=list(index)).set_index(list(index))
    return pandas.DataFrame.from_records(rows).set_index(list(index))
