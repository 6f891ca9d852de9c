"""The HTML report of a run: one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exfm.reporting import plots
from exfm.reporting.figures import FILTERS, verdict

Json = Mapping[str, Any]

_TIMES = {
    "total_s": "in all",
    "train_s": "training",
    "supervise_s": "older snapshots' labels",
    "data_s": "waiting for data",
    "commit_s": "committing",
    "time_to_first_batch_s": "until the first batch",
}
_MOST_CARDS = 6
_MOST_ROWS = 16
"""Past these, figures are in tables only: a screenful of cards or of rows in a plot shows nothing at a glance."""


def render_report(results: Json, config_yaml: str) -> str:
    """The page for a run's results.json and its resolved config: styles and plots inside, no script, no network.

    The same arguments give the same page. Parts that the results lack (gains, costs, supervision) are left out.
    """
    environment = Environment(
        loader=PackageLoader("exfm.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= FILTERS
    models = results["models"]
    styles = plots.series_styles(results)
    comparisons = list(_comparisons(results.get("gains", ())))
    return environment.get_template("report.html.j2").render(
        results=results,
        config_yaml=config_yaml,
        comparisons=comparisons,
        as_cards=len(comparisons) <= _MOST_CARDS,
        tasks=_tasks(models),
        styles=styles,
        plots=[{"caption": caption, "svg": Markup(svg)} for caption, svg in _plots(results, comparisons, styles)],
        has_lookups=any(model.get("serving_lookups") for model in models.values()),
        has_bayes=any("bayes_ne" in figures for model in models.values() for figures in model["tasks"].values()),
        supervision=[
            {"student": student, "teacher": teacher, **figures}
            for teacher, students in results.get("supervision", {}).items()
            for student, figures in students.items()
        ],
        soft_labels=[
            {"student": student, "teacher": teacher, **figures}
            for teacher, students in results.get("supervision", {}).items()
            for student, supervised in students.items()
            for figures in supervised.get("soft_labels", ())
        ],
    )


def _tasks(models: Mapping[str, Json]) -> list[str]:
    return list(dict.fromkeys(task for model in models.values() for task in model["tasks"]))


def _comparisons(gains: Sequence[Json]) -> Iterator[dict[str, Any]]:
    """One comparison for each model and task; results.json has one entry for each teacher, next to each other."""
    for (model, task), entries in groupby(gains, key=lambda gain: (gain["model"], gain["task"])):
        first, *others = entries
        taught = [gain for gain in (first, *others) if gain["teacher"] is not None]
        yield {**first, "teachers": taught, "verdict": verdict(first), "model": model, "task": task}


def _plots(
    results: Json, comparisons: Sequence[Json], styles: Mapping[str, plots.SeriesStyle]
) -> Iterator[tuple[str, str]]:
    """Caption and SVG of each plot that the results have figures for."""
    models = results["models"]
    if comparisons:
        yield "NE gain over the control", plots.gain_plot(comparisons, styles)
    drawn, note = models, ""
    if len(models) > _MOST_ROWS:
        controls = {gain["control"] for gain in comparisons}
        drawn, note = {name: model for name, model in models.items() if name not in controls}, ", without controls"
    for task in _tasks(models):
        yield f"NE over time: {task}{note}", plots.ne_plot(drawn, task, styles)
    calibrations = [figures["calibration"] for model in models.values() for figures in model["tasks"].values()]
    if any(value is not None for value in calibrations) and len(calibrations) <= _MOST_ROWS:
        yield "Calibration", plots.calibration_plot(models, styles)
    speeds = {
        name: model["train_examples_per_second"]
        for name, model in models.items()
        if model.get("train_examples_per_second") is not None
    }
    if 0 < len(speeds) <= _MOST_ROWS:
        yield "Training speed", plots.bars_plot(speeds, "examples per second", "Training speed of each model")
    for teacher, students in results.get("supervision", {}).items():
        known = {name: figures["age_histogram"] for name, figures in students.items() if figures["age_s"] is not None}
        if 0 < len(known) <= _MOST_ROWS:
            yield f"Age of supervision: {teacher}", plots.age_plot(known, styles)
    times = {
        label: results["time"][key] for key, label in _TIMES.items() if results.get("time", {}).get(key) is not None
    }
    if times:
        yield "Time", plots.bars_plot(times, "seconds", "Time spent")
