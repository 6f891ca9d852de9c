"""Tracker `tensorboard`: a TensorBoard run for each model, with windows as steps and the stream's time as clock."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import exfm
from exfm.events import RunEnded, SnapshotHeld, TrackedModel, TrackedRun, WindowCommitted
from exfm.sources import Window


class TensorBoardTracker(exfm.Tracker):
    """Writes event files under ``LOGDIR/EXPERIMENT/MODEL``; needs ``exfm[tensorboard]``.

    Each figure of a window is a scalar whose step is the window and whose time is the window's start in the stream. A
    held snapshot is a text with its reason. Each start of a job writes the run's files anew, from its commits.

    Example::

        trackers: [{name: tensorboard, logdir: logs}]
    """

    name: ClassVar[str] = "tensorboard"
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `tensorboard`."""

        logdir: str = Field(min_length=1, description="The local folder that TensorBoard is started with.")

    def __init__(self, config: Config, run: TrackedRun) -> None:
        super().__init__(config, run)
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(f"TensorBoard cannot be imported ({error}): pip install 'exfm[tensorboard]'") from error
        self._open_writer = SummaryWriter
        # Ends the names of this run's files, so that no other file in the folder is ever deleted, nor another run's.
        self._suffix = f".{hashlib.sha256(run.url.encode()).hexdigest()[:8]}.exfm"
        self._writers: dict[str, Any] = {}
        self._newest: dict[str, Window] = {}

    def last_window(self, model: TrackedModel) -> int:
        """Returns -1, because the files are written anew."""
        return -1

    def window_committed(self, event: WindowCommitted) -> None:
        """Writes the figures of a window."""
        self._newest[event.model.name] = event.window
        self._add(event.model, event.figures(), event.window)

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Writes the reasons."""
        text = "\n".join(f"{task}: {reason}" for task, reason in event.reasons.items())
        writer = self._writer(event.model)
        writer.add_text("snapshot held", text, event.window.index, walltime=event.window.start_us / 1e6)
        writer.flush()

    def run_ended(self, event: RunEnded) -> None:
        """Writes the figures of the whole run at the last window."""
        for model in event.models:
            if model.name in self._newest and model.name in event.figures:
                self._add(model, event.figures[model.name], self._newest[model.name])

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, model: TrackedModel, values: Mapping[str, float], window: Window) -> None:
        writer = self._writer(model)
        for key, value in values.items():
            writer.add_scalar(key, value, window.index, walltime=window.start_us / 1e6)
        writer.flush()

    def _writer(self, model: TrackedModel) -> Any:
        """Opens a model's event file, instead of those of an earlier start, whose points TensorBoard would show too."""
        if model.name not in self._writers:
            folder = Path(self.config.logdir) / self.run.name / model.name
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"{folder}: the folder cannot be made: {error.strerror}") from error
            for old in folder.glob(f"events.out.tfevents.*{self._suffix}"):
                old.unlink()
            writer = self._open_writer(str(folder), filename_suffix=self._suffix)
            writer.add_text("config", f"```yaml\n{self.run.config_yaml}```")
            self._writers[model.name] = writer
        return self._writers[model.name]
