"""Holds the figures of a model of a run, and loads its snapshots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from exfm.config.loading import Experiment
from exfm.reporting.formatting import fixed, interval, signed
from exfm.reporting.frames import data_frame, window_records
from exfm.storage.aliases import LATEST

if TYPE_CHECKING:
    import pyarrow as pa

    from exfm.data.batch import Batch
    from exfm.result.snapshot_model import SnapshotModel


class ModelResult(dict[str, Any]):
    """A model of a run: its entry of ``models`` in results.json, its gains, and its snapshots.

    Args:
        name: the model's name.
        results: the content of results.json.
        load_experiment: loads the run's experiment.

    Attributes:
        name: the model's name.
        gains: its entries of ``gains`` in results.json: over its control, by task and teacher.
    """

    def __init__(self, name: str, results: Mapping[str, Any], load_experiment: Callable[[], Experiment]) -> None:
        super().__init__(results["models"][name])
        self.name = name
        self.gains: list[dict[str, Any]] = [gain for gain in results["gains"] if gain["model"] == name]
        self._load_experiment = load_experiment

    def to_frame(self) -> Any:
        """Returns a pandas DataFrame of the figures by task and window.

        Raises:
            ConfigError: pandas is not installed.
        """
        records = window_records({"models": {self.name: self}})
        return data_frame(records, ("model", "task", "window")).droplevel("model")

    def load(self, at: str = LATEST) -> SnapshotModel:
        """Loads a snapshot as an ordinary module in evaluation mode, which also encodes its features.

        Args:
            at: version, alias or time of the snapshot; the newest that is published by default.

        Raises:
            ConfigError: there is no such snapshot, or the stream's first rows, which tell the types of columns, cannot
                be read.
            RunError: the snapshot is corrupt, or not finite.

        Example::

            model = exfm.open_run("runs/my").models["vm"].load()
            predictions = model.predict(rows)
        """
        from exfm.result.snapshot_model import load_model

        return load_model(self._load_experiment(), self.name, at)

    def rows(self, count: int = 256, window: int = 0) -> pa.RecordBatch:
        """Reads the first rows of the stream that the model sees, without rows that break the schema.

        Args:
            count: the number of rows; fewer are returned where the stream ends before.
            window: begin with this window of the stream, counted from 0.

        Raises:
            ConfigError: the stream cannot be read, has no such window, or has no row for the model from there on.
        """
        from exfm.result.model_rows import first_rows

        return first_rows(self._load_experiment(), self.name, count, window)

    def batch(self, count: int = 256, window: int = 0, at: str = LATEST) -> tuple[SnapshotModel, Batch]:
        """Loads a snapshot, and encodes the first rows that the model sees, with their labels: a step to look into.

        Args:
            count, window: see ``rows``.
            at: see ``load``.

        Returns:
            The model and the batch; ``model(batch)`` predicts it, and ``model.network`` has the layers in between.

        Raises:
            ConfigError: see ``rows`` and ``load``.

        Example::

            model, batch = exfm.open_run("runs/my").models["vm"].batch(64)
            tokens_BND, sequences = model.network.featurizer(batch)
        """
        model = self.load(at)
        return model, model.encode(self.rows(count, window))

    def __repr__(self) -> str:
        words: list[str] = []
        for task, figures in self["tasks"].items():
            words.append(f"{task} NE {fixed(figures['ne'])}")
            # Of several teachers each has an entry with the same gain.
            gain = next((gain for gain in self.gains if gain["task"] == task), None)
            if gain is not None and gain["ne_gain_percent"] is not None:
                over = f"{signed(gain['ne_gain_percent'])}% over {gain['control']}"
                words[-1] += f", {over} ({interval(gain['interval95'])})"
        return f"ModelResult({self.name!r}, {'; '.join(words)})"
