"""Finds the column of the event time and its unit, the length of windows, and clocks that are wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import numpy.typing as npt

from exfm.errors import ConfigError
from exfm.inspection.columns import Column
from exfm.inspection.log import Log
from exfm.inspection.names import EVENT, TIME, hints
from exfm.inspection.sample import Sample
from exfm.sources.times import TimeUnit

DAY_US = 86_400_000_000
YEAR_2000_US = 946_684_800_000_000
WINDOWS = 20
"""About so many windows a log is cut into: enough for a curve, few enough that each holds rows."""

_FACTORS: dict[TimeUnit, float] = {"timestamp": 1.0, "s": 1e6, "ms": 1e3, "us": 1.0, "ns": 1e-3}
"""Microseconds of a unit; the sample's timestamps are in microseconds."""

_WRONG_SHARE = 0.01
"""Times outside the usual years are taken for wrong clocks if so few rows have them."""

_LENGTHS = {
    "1s": 1, "5s": 5, "10s": 10, "30s": 30, "1m": 60, "2m": 120, "5m": 300, "10m": 600, "15m": 900, "30m": 1_800,
    "1h": 3_600, "2h": 7_200, "3h": 10_800, "6h": 21_600, "12h": 43_200, "1d": 86_400, "2d": 172_800, "7d": 604_800,
    "14d": 1_209_600, "28d": 2_419_200, "90d": 7_776_000, "365d": 31_536_000,
}  # fmt: skip
"""Seconds of usual lengths of a window."""


@dataclass(frozen=True)
class EventTime:
    """Describes the column of the event time.

    Attributes:
        time_R: the sampled times in microseconds, NaN where a time is missing.
        start: the time at which the stream is to begin, ISO 8601, because rows before it have a wrong clock; or empty.
        has_missing: whether rows without a time were seen.
    """

    column: str
    unit: TimeUnit
    time_R: npt.NDArray[np.float64]
    window: str
    start: str
    has_missing: bool
    warnings: tuple[str, ...]

    @property
    def window_s(self) -> int:
        """The length of a window in seconds."""
        return _LENGTHS[self.window]


def find_event_time(log: Log, sample: Sample, now_us: int) -> EventTime:
    """Finds the event time.

    Raises:
        ConfigError: no column is a time.
    """
    tomorrow_us = now_us + DAY_US
    best: tuple[float, Column, TimeUnit] | None = None
    for column in sample.columns.values():
        unit = _unit(column, tomorrow_us)
        if unit is None:
            continue
        score = _score(column, unit, sample)
        if score > 0 and (best is None or score > best[0]):
            best = score, column, unit
    if best is None:
        raise ConfigError(_no_time(log, sample.columns.values()))
    _, column, unit = best
    return _describe(column, unit, log, sample, tomorrow_us)


def integer_unit(numbers: npt.NDArray[np.float64], tomorrow_us: int) -> TimeUnit | None:
    """Returns the unit in which most numbers are times between 2000 and tomorrow; None where there is none."""
    present = numbers[~np.isnan(numbers)]
    if not present.size:
        return None
    for unit in ("s", "ms", "us", "ns"):
        time_R = present * _FACTORS[unit]
        if ((time_R >= YEAR_2000_US) & (time_R <= tomorrow_us)).mean() > 0.5:
            return unit
    return None


def _unit(column: Column, tomorrow_us: int) -> TimeUnit | None:
    if column.kind == "time":
        return "timestamp"
    if column.kind == "integer" and not column.stored.__class__.__name__.startswith("Decimal"):
        return integer_unit(column.numbers, tomorrow_us)
    return None


def _score(column: Column, unit: TimeUnit, sample: Sample) -> float:
    """Returns how much a column looks like the time of its rows; 0 or less where it does not."""
    # A label's time, such as that of a click, is null in most rows.
    if column.null_share > 0.4 or column.is_constant:
        return 0.0
    inside = np.ones(sample.rows, bool)
    # Between two runs of rows the sample skips time, so that only neighbours inside a run are compared.
    inside[sample.block_starts] = False
    numbers = column.numbers
    # Logs are written in order of time, or nearly; integers that happen to lie in the range are not in order.
    in_order = float((np.diff(numbers) >= 0)[inside[1:]].mean()) if inside.any() else 0.0
    score = 2.0 * (in_order > 0.9) + 2.0 * hints(column.name, TIME) + 1.0 * hints(column.name, EVENT)
    score += 2.0 * (unit == "timestamp") - column.null_share
    return score if unit == "timestamp" or not hints(column.name, ("id", "key", "hash")) else 0.0


def _no_time(log: Log, columns: Iterable[Column]) -> str:
    near: list[str] = []
    for column in columns:
        if hints(column.name, TIME) or column.kind in ("time", "other"):
            near.append(f"{column.name} ({column.stored})")
    listed = f" Nearest: {', '.join(near)}." if near else ""
    return (
        f"{log.url}: no column is the time of a row: a timestamp, or an integer that counts s, ms, us or ns since 1970 "
        f"and lies between 2000 and tomorrow.{listed} Convert text, dates and fractions to timestamps when the log is "
        "written, as in pandas.to_datetime(column, utc=True)"
    )


def _describe(column: Column, unit: TimeUnit, log: Log, sample: Sample, tomorrow_us: int) -> EventTime:
    """Finds the span of the log, the length of a window, and rows whose clock is wrong."""
    factor = _FACTORS[unit]
    time_R = np.floor(column.numbers * factor)
    present = time_R[~np.isnan(time_R)]
    bounds = np.array(log.bounds(column.name), np.float64).reshape(-1, 2) * factor
    # Statistics know the whole log, and the sample the share of rows.
    edges = np.concatenate([present, bounds.ravel()])
    warnings: list[str] = []
    early, late = float((present < YEAR_2000_US).mean()), float((present > tomorrow_us).mean())
    start = ""
    if edges.min() < YEAR_2000_US:
        warnings.append(f"{column.name}: {_share(early)} of rows lie before 2000, the first at {_iso(edges.min())}")
    if edges.max() > tomorrow_us:
        warnings.append(f"{column.name}: {_share(late)} of rows lie after tomorrow, the last at {_iso(edges.max())}")
    usual = edges
    if late < _WRONG_SHARE:
        usual = usual[usual <= tomorrow_us]
    # More rows are an old log, or a clock that counts from its beginning.
    if early < _WRONG_SHARE and edges.min() < YEAR_2000_US:
        usual = usual[usual >= YEAR_2000_US]
        start = _iso(usual.min())
    if column.null_share:
        warnings.append(
            f"{column.name}: {_share(column.null_share)} of rows have no time; stream.on_bad_row leaves them out"
        )
    span_us = float(usual.max() - usual.min())
    gap_us, gap_at = _longest_gap(present if sample.is_whole else bounds, usual.min(), usual.max())
    if gap_us > span_us / 5:
        warnings.append(f"{column.name}: the clock jumps: no row for {gap_us / DAY_US:.3g} days from {_iso(gap_at)}")
    wanted_s = span_us / WINDOWS / 1e6
    # By the ratio of lengths and not by their difference, because lengths grow by factors.
    window = min(_LENGTHS, key=lambda name: abs(math.log(_LENGTHS[name] / max(wanted_s, 1e-3))))
    return EventTime(column.name, unit, time_R, window, start, bool(column.null_share), tuple(warnings))


def _longest_gap(times: npt.NDArray[np.float64], first_us: float, last_us: float) -> tuple[float, float]:
    """Returns the longest time between rows, or between row groups as pairs of bounds, and when it begins."""
    pairs = np.stack([times, times], axis=1) if times.ndim == 1 else times
    pairs = np.clip(pairs, first_us, last_us)
    if not len(pairs):
        return 0.0, first_us
    pairs = pairs[np.argsort(pairs[:, 0])]
    # Row groups may overlap: time is covered up to the latest end so far.
    ends = np.maximum.accumulate(pairs[:, 1])
    gaps = np.append(pairs[1:, 0] - ends[:-1], 0.0)
    return float(gaps.max()), float(ends[gaps.argmax()])


def _share(share: float) -> str:
    # Wrong rows that only the statistics know would otherwise be reported as 0.00%.
    return f"{share:.2%}" if share >= 1e-4 else "less than 0.01%"


def _iso(time_us: float) -> str:
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{time_us:.3g} microseconds since 1970"
