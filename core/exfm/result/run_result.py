"""Holds the results of a run: a dictionary as in results.json, with frames, plots and models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from exfm.config.loading import Experiment
from exfm.config.run_files import REPORT_FILE
from exfm.errors import ConfigError, suggestion
from exfm.redaction import without_credentials
from exfm.reporting.formatting import fixed, interval, signed
from exfm.reporting.frames import data_frame, figure_records, window_records
from exfm.reporting.html_table import html_table
from exfm.result.model_result import ModelResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ModelResults(dict[str, ModelResult]):
    """The models of a run by name; a control is called NAME.control."""

    def __missing__(self, name: str) -> ModelResult:
        raise ConfigError(f"the run has no model {name!r}.{suggestion(name, self)}")

    def __repr__(self) -> str:
        return f"models: {', '.join(self)}"


class RunResult(dict[str, Any]):
    """The results of a run: the content of results.json, and everything that Python code asks of a run.

    Empty, and false, on any rank but zero of several processes.

    Args:
        results: the content of results.json.
        run_dir: the run's folder, any fsspec URL.
        load_experiment: loads the run's experiment.

    Attributes:
        run_dir: the run's folder, any fsspec URL.

    Example::

        result = exfm.run(exfm.load_experiment("my.yaml"))
        result.to_frame()["ne"].unstack("model").plot()
        model = result.models["vm"].load()
    """

    def __init__(self, results: Mapping[str, Any], run_dir: str, load_experiment: Callable[[], Experiment]) -> None:
        super().__init__(results)
        self.run_dir = run_dir
        self._load_experiment = load_experiment

    @cached_property
    def experiment(self) -> Experiment:
        """The experiment of the run."""
        return self._load_experiment()

    @cached_property
    def models(self) -> ModelResults:
        """The models of the run by name, with their figures and snapshots."""
        # A function, because figures need no experiment, and loading it imports plugins.
        return ModelResults({name: ModelResult(name, self, lambda: self.experiment) for name in self.get("models", ())})

    def to_frame(self, windows: bool = True) -> Any:
        """Returns a pandas DataFrame of figures.

        Args:
            windows: a row per model, task and window; otherwise a row per model and task, with the overall figures, the
                gain over the control and both ends of its 95% interval.

        Raises:
            ConfigError: pandas is not installed.
        """
        if not self:
            return data_frame([], ("model", "task"))
        if windows:
            return data_frame(window_records(self), ("model", "task", "window"))
        return data_frame(figure_records(self), ("model", "task"))

    def plot(self, task: str | None = None) -> Figure:
        """Draws NE over time by model, and the gains over controls with their 95% intervals.

        Args:
            task: the first task of the first model by default.

        Raises:
            ConfigError: no model predicts the task.
        """
        from exfm.reporting.run_figure import draw_gains, draw_ne, new_figure

        tasks = list(dict.fromkeys(record["task"] for record in figure_records(self)))
        task = tasks[0] if task is None else task
        if task not in tasks:
            raise ConfigError(f"plot: no model predicts {task!r}.{suggestion(task, tasks)}")
        gains: dict[str, Mapping[str, Any]] = {}
        for gain in self["gains"]:
            if gain["task"] == task and gain["ne_gain_percent"] is not None:
                gains[f"{gain['model']} over {gain['control']}"] = gain
        figure, axes = new_figure(2 if gains else 1, len(gains))
        windows: dict[str, Any] = {}
        for name, model in self["models"].items():
            if task in model["tasks"]:
                windows[name] = model["tasks"][task]["windows"]
        draw_ne(axes[0], windows, task)
        if gains:
            draw_gains(axes[1], list(gains.items()), "NE gain, %, with its 95% interval")
        return figure

    def __repr__(self) -> str:
        if not self:
            return "RunResult of a process that does not evaluate"
        words = [f"{len(self['models'])} models"]
        # Of several teachers each has an entry with the same gain.
        for gain in {(gain["model"], gain["task"]): gain for gain in self["gains"]}.values():
            if gain["ne_gain_percent"] is not None:
                words.append(f"{gain['model']} on {gain['task']} {signed(gain['ne_gain_percent'])}%")
        return f"RunResult({self['experiment']!r}, {', '.join(words)}, run_dir: {without_credentials(self.run_dir)})"

    def _repr_html_(self) -> str:
        """Shows the figures, the gains and the notes in a notebook."""
        if not self:
            return ""
        rows: list[list[str]] = []
        for record in figure_records(self):
            gain = ""
            if record.get("ne_gain_percent") is not None:
                bounds = None if record["gain_low"] is None else (record["gain_low"], record["gain_high"])
                gain = f"{signed(record['ne_gain_percent'])}% over {record['control']} ({interval(bounds)})"
            figures = [fixed(record[name]) for name in ("ne", "auc", "gauc", "calibration")]
            rows.append([record["model"], record["task"], f"{record['examples']:,}", *figures, gain])
        headings = ("model", "task", "examples", "NE", "AUC", "GAUC", "calibration", "NE gain (95% interval)")
        report = without_credentials(f"{self.run_dir.rstrip('/')}/{REPORT_FILE}")
        notes = [[note] for note in (*self["notes"], f"report: {report}")]
        return html_table(headings, rows, self["experiment"]) + html_table(("notes",), notes)
