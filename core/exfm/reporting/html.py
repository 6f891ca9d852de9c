"""The HTML report of a run: one page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exfm.reporting import plots
from exfm.reporting.formatting import FILTERS, is_control, useless
from exfm.reporting.gains import Scale, comparisons

Json = Mapping[str, Any]

_TIMES = {
    "total_s": "in all",
    "train_s": "training",
    "supervise_s": "older snapshots' labels",
    "data_s": "waiting for data",
    "commit_s": "committing",
    "time_to_first_batch_s": "until the first batch",
}
_MOST_ROWS = 16
"""Past these, figures are in tables only: a screenful of rows in a plot shows nothing at a glance."""


@dataclass(frozen=True)
class Plot:
    """One figure of the page; ``names`` are the models in its legend, none where its rows are named."""

    caption: str
    svg: Markup
    names: tuple[str, ...] = ()


def environment() -> Environment:
    """Where the pages' templates are, with the filters they use; a name they lack is an error."""
    pages = Environment(
        loader=PackageLoader("exfm.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    pages.filters |= FILTERS
    return pages


def render_report(results: Json, config_yaml: str, diagnosis: Json | None = None) -> str:
    """The page for a run's results.json and its resolved config: styles and plots inside, no script, no network.

    The same arguments give the same page. Parts that the results lack (gains, costs, supervision) are left out.
    """
    models = results["models"]
    styles = plots.series_styles(results)
    compared = list(comparisons(results.get("gains", ())))
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            results=results,
            config_yaml=config_yaml,
            diagnosis=diagnosis,
            useless=useless(results),
            comparisons=compared,
            verdicts=Counter(comparison["verdict"] for comparison in compared),
            scale=Scale.of(compared),
            tasks=_tasks(models),
            styles=styles,
            over_time=list(_over_time(models, styles)),
            age=list(_age(results, styles)),
            calibration=list(_calibration(models, styles)),
            cost=list(_cost(results)),
            has_lookups=any(model.get("serving_lookups") for model in models.values()),
            has_bayes=any("bayes_ne" in figures for model in models.values() for figures in model["tasks"].values()),
            has_recall=any("recall_at" in figures for model in models.values() for figures in model["tasks"].values()),
            supervision=[
                {"student": student, "teacher": teacher, **figures}
                for teacher, students in results.get("supervision", {}).items()
                for student, figures in students.items()
            ],
        )
    )


def _tasks(models: Mapping[str, Json]) -> list[str]:
    return list(dict.fromkeys(task for model in models.values() for task in model["tasks"]))


def _over_time(models: Mapping[str, Json], styles: Mapping[str, plots.SeriesStyle]) -> Iterator[Plot]:
    drawn, note = models, ""
    if len(models) > _MOST_ROWS:
        drawn, note = {name: model for name, model in models.items() if not is_control(name)}, ", without controls"
    for task in _tasks(drawn):
        names = tuple(name for name, model in drawn.items() if task in model["tasks"])
        yield Plot(f"NE over time: {task}{note}", Markup(plots.ne_plot(drawn, task, styles)), names)


def _age(results: Json, styles: Mapping[str, plots.SeriesStyle]) -> Iterator[Plot]:
    for teacher, students in results.get("supervision", {}).items():
        known = {name: figures["age_histogram"] for name, figures in students.items() if figures["age_s"] is not None}
        if 0 < len(known) <= _MOST_ROWS:
            yield Plot(f"Age of supervision: {teacher}", Markup(plots.age_plot(known, styles)), tuple(known))


def _calibration(models: Mapping[str, Json], styles: Mapping[str, plots.SeriesStyle]) -> Iterator[Plot]:
    calibrations = [figures["calibration"] for model in models.values() for figures in model["tasks"].values()]
    if any(value is not None for value in calibrations) and len(calibrations) <= _MOST_ROWS:
        yield Plot("Calibration", Markup(plots.calibration_plot(models, styles)))


def _cost(results: Json) -> Iterator[Plot]:
    speeds = {
        name: model["train_examples_per_second"]
        for name, model in results["models"].items()
        if model.get("train_examples_per_second") is not None
    }
    if 0 < len(speeds) <= _MOST_ROWS:
        yield Plot("Training speed", Markup(plots.bars_plot(speeds, "examples per second", "Training speed")))
    times = {
        label: results["time"][key] for key, label in _TIMES.items() if results.get("time", {}).get(key) is not None
    }
    if times:
        yield Plot("Time", Markup(plots.bars_plot(times, "seconds", "Time spent")))
