"""Renders the HTML report of a run: a single page without scripts and without files beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exfm.mappings import values_at
from exfm.reporting import plots
from exfm.reporting.formatting import FILTERS, is_control, useless_models
from exfm.reporting.gain_scale import GainScale, comparisons
from exfm.reporting.label_figures import label_kind, metric_titles

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
"""Rows of a plot above which its figures are in tables only, because it would fill more than a screen."""


@dataclass(frozen=True)
class ReportPlot:
    """Holds a figure of the page.

    Attributes:
        names: the models in its legend; none where its rows are named.
    """

    caption: str
    svg: Markup
    names: tuple[str, ...] = ()


@cache  # compiling the templates takes longer than rendering a page, and a sweep renders many
def environment() -> Environment:
    """Builds the environment of the pages' templates, with the filters they use."""
    pages = Environment(
        loader=PackageLoader("exfm.reporting"),
        # Names come from experiment files: they are text and never markup.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name in a template is an error, and not an empty string.
        undefined=StrictUndefined,
    )
    pages.filters |= FILTERS
    return pages


def render_report(results: Json, config_yaml: str, diagnosis: Json | None = None) -> str:
    """Renders the page for a run's results.json and its resolved config: styles and plots inside, no network.

    The same arguments give the same page. Sections that the results lack (gains, costs, supervision) are left out.
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
            useless=useless_models(results),
            comparisons=compared,
            verdicts=Counter(values_at(compared, "verdict")),
            scale=GainScale.from_gains(compared),
            tasks=_tasks(models),
            kinds={task: label_kind(models, task) for task in _tasks(models)},
            metrics={task: metric_titles(models, task) for task in _tasks(models)},
            styles=styles,
            over_time=list(_over_time(models, styles)),
            age=list(_age(results, styles)),
            calibration=list(_calibration(models, styles)),
            cost=list(_costs(results)),
            has_lookups=any(model.get("serving_lookups") for model in models.values()),
            has_bayes=_has_figure(models, "bayes_ne"),
            has_recall=_has_figure(models, "recall_at"),
            supervision=list(_supervision_rows(results)),
        )
    )


def _has_figure(models: Mapping[str, Json], key: str) -> bool:
    """Checks whether any model has a figure, so that a column for it is worth its room."""
    for model in models.values():
        for figures in model["tasks"].values():
            if key in figures:
                return True
    return False


def _supervision_rows(results: Json) -> Iterator[dict[str, Any]]:
    """Yields a row for each student and teacher."""
    for teacher, students in results.get("supervision", {}).items():
        for student, figures in students.items():
            yield {"student": student, "teacher": teacher, **figures}


def _tasks(models: Mapping[str, Json]) -> list[str]:
    """Lists the tasks of all models, each once, in order of appearance."""
    tasks: dict[str, None] = {}
    for model in models.values():
        tasks |= dict.fromkeys(model["tasks"])
    return list(tasks)


def _over_time(models: Mapping[str, Json], styles: Mapping[str, plots.SeriesStyle]) -> Iterator[ReportPlot]:
    drawn, note = models, ""
    # Controls double the lines; where there are many, the gains section compares them better.
    if len(models) > _MOST_ROWS:
        drawn, note = {name: model for name, model in models.items() if not is_control(name)}, ", without controls"
    for task in _tasks(drawn):
        names = tuple(name for name, model in drawn.items() if task in model["tasks"])
        yield ReportPlot(f"NE over time: {task}{note}", Markup(plots.ne_plot(drawn, task, styles)), names)


def _age(results: Json, styles: Mapping[str, plots.SeriesStyle]) -> Iterator[ReportPlot]:
    for teacher, students in results.get("supervision", {}).items():
        histograms: dict[str, Json] = {}
        for name, figures in students.items():
            # A student without supervision has an empty histogram, which has no shares.
            if figures["age_s"] is not None:
                histograms[name] = figures["age_histogram"]
        if 0 < len(histograms) <= _MOST_ROWS:
            caption = f"Age of supervision: {teacher}"
            yield ReportPlot(caption, Markup(plots.age_plot(histograms, styles)), tuple(histograms))


def _calibration(models: Mapping[str, Json], styles: Mapping[str, plots.SeriesStyle]) -> Iterator[ReportPlot]:
    calibrations = []
    for model in models.values():
        for figures in model["tasks"].values():
            calibrations.append(figures["calibration"])
    is_empty = all(value is None for value in calibrations)
    if not is_empty and len(calibrations) <= _MOST_ROWS:
        yield ReportPlot("Calibration", Markup(plots.calibration_plot(models, styles)))


def _costs(results: Json) -> Iterator[ReportPlot]:
    speeds: dict[str, float] = {}
    for name, model in results["models"].items():
        if model.get("train_examples_per_second") is not None:
            speeds[name] = model["train_examples_per_second"]
    if 0 < len(speeds) <= _MOST_ROWS:
        yield ReportPlot("Training speed", Markup(plots.bars_plot(speeds, "examples per second", "Training speed")))
    measured = results.get("time", {})
    times = {label: measured[key] for key, label in _TIMES.items() if measured.get(key) is not None}
    if times:
        yield ReportPlot("Time", Markup(plots.bars_plot(times, "seconds", "Time spent")))
