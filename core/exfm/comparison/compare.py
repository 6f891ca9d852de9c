"""Compares runs, and shows the comparison as data, as a frame, as a plot and in a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exfm.comparison.config_differences import config_differences
from exfm.comparison.paired_gains import paired_gains
from exfm.comparison.run_files import HasFolder, RunFiles, open_runs
from exfm.errors import ConfigError
from exfm.reporting.formatting import MISSING, fixed, interval, signed
from exfm.reporting.frames import data_frame, figure_records, window_records
from exfm.reporting.html_table import html_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LONGEST_VALUE = 60  # characters of a value in a table


@dataclass(frozen=True, repr=False)
class Comparison:
    """Holds a comparison of runs, of JSON's types.

    Attributes:
        runs: ``label``, ``run_dir``, ``experiment`` and ``seed`` of each run; the first is the baseline.
        differences: ``key`` and ``values`` by label, for each key of the configs that differs; a run that lacks the
            key has no value.
        figures: ``run``, ``model``, ``task``, the overall figures, and the gain over the model's control.
        gains: ``run``, ``baseline``, ``model``, ``task``, ``examples``, ``ne``, ``baseline_ne``, ``ne_gain_percent``
            and ``interval95`` over the same model of the first run, on the examples that both predicted; ``note`` says
            why there is none.
    """

    runs: list[dict[str, Any]]
    differences: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    gains: list[dict[str, Any]]
    _opened: list[RunFiles] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Returns runs, differences, figures and gains, ready for JSON."""
        return {"runs": self.runs, "differences": self.differences, "figures": self.figures, "gains": self.gains}

    def curves(self) -> list[dict[str, Any]]:
        """Returns the figures of every ``run``, ``model``, ``task`` and ``window``, ready for JSON."""
        records: list[dict[str, Any]] = []
        for run in self._opened:
            records += [{"run": run.label, **record} for record in window_records(run.results)]
        return records

    def to_frame(self) -> Any:
        """Returns a pandas DataFrame of the figures by run, model and task, with a column for each key that differs.

        Raises:
            ConfigError: pandas is not installed.
        """
        records: list[dict[str, Any]] = []
        for record in self.figures:
            config = {entry["key"]: _cell(entry["values"].get(record["run"])) for entry in self.differences}
            records.append({**record, **config})
        return data_frame(records, ("run", "model", "task"))

    def gains_frame(self) -> Any:
        """Returns a pandas DataFrame of the gains over the first run, by run, model and task.

        Raises:
            ConfigError: pandas is not installed.
        """
        records: list[dict[str, Any]] = []
        for gain in self.gains:
            low, high = gain["interval95"] or (None, None)
            entry = {key: value for key, value in gain.items() if key != "interval95"}
            records.append({**entry, "gain_low": low, "gain_high": high})
        return data_frame(records, ("run", "model", "task"))

    def plot(self, task: str | None = None) -> Figure:
        """Draws a task: NE over time of the models that have a control, or else of all, and the gains of the runs.

        Args:
            task: the first of the first run by default.

        Raises:
            ConfigError: no run has the task.
        """
        from exfm.reporting.run_figure import draw_gains, draw_ne, new_figure

        tasks = list(dict.fromkeys(record["task"] for record in self.figures))
        task = tasks[0] if task is None else task
        if task not in tasks:
            raise ConfigError(f"plot: no run has the task {task!r}; there are {', '.join(tasks)}")
        records = [record for record in self.figures if record["task"] == task]
        taught = [record for record in records if record.get("ne_gain_percent") is not None]
        gains: list[tuple[str, dict[str, Any]]] = []
        for record in taught:
            bounds = None if record["gain_low"] is None else [record["gain_low"], record["gain_high"]]
            gain = {"ne_gain_percent": record["ne_gain_percent"], "interval95": bounds}
            gains.append((f"{record['run']}, {record['model']}", gain))
        figure, axes = new_figure(2 if gains else 1, len(gains))
        results = {run.label: run.results for run in self._opened}
        windows: dict[str, Any] = {}
        # Models with a gain where there are any, because curves of every model of every run cannot be told apart.
        for record in taught or records:
            model = results[record["run"]]["models"][record["model"]]
            windows[f"{record['run']}, {record['model']}"] = model["tasks"][task]["windows"]
        draw_ne(axes[0], windows, task)
        if gains:
            draw_gains(axes[1], gains, "NE gain over the control, %, with its 95% interval")
        return figure

    def __repr__(self) -> str:
        keys = ", ".join(entry["key"] for entry in self.differences[:4])
        if len(self.differences) > 4:
            keys += ", ..."
        return f"Comparison of {', '.join(run['label'] for run in self.runs)}; they differ in {keys or 'no key'}"

    def _repr_html_(self) -> str:
        """Shows the differences, the figures and the gains in a notebook."""
        labels = [run["label"] for run in self.runs]
        differing: list[list[str]] = []
        for entry in self.differences:
            differing.append([entry["key"], *(_cell(entry["values"].get(label, MISSING)) for label in labels)])
        figures: list[list[str]] = []
        for record in self.figures:
            bounds = None if record.get("gain_low") is None else (record["gain_low"], record["gain_high"])
            gain = f"{signed(record.get('ne_gain_percent'))} ({interval(bounds)})" if "control" in record else ""
            names = [record["run"], record["model"], record["task"]]
            figures.append([*names, fixed(record["ne"]), fixed(record["auc"]), gain])
        gains: list[list[str]] = []
        for entry in self.gains:
            gain = entry["note"] or f"{signed(entry['ne_gain_percent'])} ({interval(entry['interval95'])})"
            gains.append([entry["run"], entry["model"], entry["task"], f"{entry['examples']:,}", gain])
        over = f"NE gain over {labels[0]}, % (95% interval)"
        return (
            html_table(["key", *labels], differing, "configs")
            + html_table(["run", "model", "task", "NE", "AUC", "NE gain over the control, %"], figures, "figures")
            + html_table(["run", "model", "task", "common examples", over], gains, "gains on the same examples")
        )


def compare(runs: Sequence[str | HasFolder], *, paired: bool = True) -> Comparison:
    """Compares finished runs with each other, and with the first in particular.

    Args:
        runs: at least two: folders, any fsspec URL, or results of ``exfm.run``.
        paired: whether each run's models are compared with those of the first run on the examples that both predicted,
            which reads the predictions of all runs.

    Raises:
        ConfigError: there are fewer than two runs, or a folder has no results.
        RunError: a committed file is missing or corrupt.
    """
    if isinstance(runs, str) or len(runs) < 2:
        raise ConfigError("compare: give a list of two runs or more, such as ['runs/a', 'runs/b']")
    opened = open_runs(runs)
    listed: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    gains: list[dict[str, Any]] = []
    for run in opened:
        named = {key: run.results[key] for key in ("experiment", "seed")}
        listed.append({"label": run.label, "run_dir": run.run_dir, **named})
        figures += [{"run": run.label, **record} for record in figure_records(run.results)]
    if paired:
        for run in opened[1:]:
            gains += paired_gains(run, opened[0])
    differences = config_differences({run.label: run.config for run in opened})
    return Comparison(listed, differences, figures, gains, opened)


def _cell(value: Any) -> Any:
    """Shortens a section of a config to a line; other values stay as they are."""
    if isinstance(value, dict | list):
        text = repr(value)
        return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
    return value
