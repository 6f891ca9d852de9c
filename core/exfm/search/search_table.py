"""Renders the tables that a search prints at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from exfm.reporting.fitted_table import FittedTable
from exfm.reporting.formatting import fixed, interval, signed
from exfm.search.space import label

Json = Mapping[str, Any]


def search_tables(summary: Json) -> Iterator[FittedTable]:
    """Builds a table of the arms and their best trials, and a table of the gains on fresh seeds."""
    tuning, held_out = summary["tuning"]["windows"], summary["held_out"]["windows"]
    notes = [f"trials read the first {tuning} windows; the gains below are of the {held_out} windows after them"]
    best = FittedTable(summary["experiment"], ["arm", "role"], ["trials", "windows", "best", "tuning gain"], notes)
    for name, arm in summary["arms"].items():
        trial = next(trial for trial in arm["trials"] if trial["number"] == arm["best"])
        gain = f"{signed(trial['gain_percent'])}%"
        best.add_row((name, arm["role"]), [str(len(arm["trials"])), str(arm["windows"]), label(trial["values"]), gain])
    yield best
    title = f"{summary['model']} on {summary['task']}, each at its best, on fresh seeds"
    gains = FittedTable(title, ["over"], ["seeds", "NE", "baseline NE", "NE gain (95% interval)"], [])
    for gain in summary["gains"]:
        seeds = gain["seeds"]
        bounds = f"{signed(gain['ne_gain_percent'])}% ({interval(gain['interval95'])})"
        nes = [_mean([seed[key] for seed in seeds if seed[key] is not None]) for key in ("ne", "baseline_ne")]
        gains.add_row((gain["baseline"],), [str(len(seeds)), fixed(nes[0]), fixed(nes[1]), bounds])
    yield gains


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
