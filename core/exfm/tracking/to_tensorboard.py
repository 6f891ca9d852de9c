"""Logs a run to TensorBoard: a TensorBoard run for each model, with windows as steps and the stream's time as clock."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window
from exfm.tracking.tracked_run import TrackedModel, TrackedRun

# Ends the names of our event files, so that other files in the folder are never deleted.
_SUFFIX = ".exfm"


class TensorBoardTracker:
    """Writes event files under ``LOGDIR/NAME/MODEL``, and replaces those of an earlier call.

    Args:
        logdir: the local folder that TensorBoard is started with.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, logdir: str, run: TrackedRun) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(f"TensorBoard cannot be imported ({error}): pip install 'exfm[tensorboard]'") from error
        self._writers: dict[str, Any] = {}
        self._last: dict[str, Window] = {}
        for model in run.models:
            folder = Path(logdir) / run.name / model.name
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(f"--tensorboard: {folder}: the folder cannot be made: {error.strerror}") from error
            # TensorBoard would show the points of both files, so the files of an earlier call go first.
            for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
                old.unlink()
            writer = SummaryWriter(str(folder), filename_suffix=_SUFFIX)
            writer.add_text("config", f"```yaml\n{run.config_yaml}```")
            self._writers[model.name] = writer

    def last_window(self, model: TrackedModel) -> int:
        """Returns the index of the last window that this call wrote; -1 for none, because every call begins anew."""
        if model.name not in self._last:
            return -1
        return self._last[model.name].index

    def window(self, model: TrackedModel, window: Window, values: Mapping[str, float]) -> None:
        """Writes the figures of a window."""
        self._last[model.name] = window
        self._add(model, values, window)
        self._writers[model.name].flush()

    def summary(self, model: TrackedModel, values: Mapping[str, float]) -> None:
        """Writes the figures of the whole run, at its last window."""
        if model.name in self._last:
            self._add(model, values, self._last[model.name])

    def close(self) -> None:
        """Closes the event files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, model: TrackedModel, values: Mapping[str, float], window: Window) -> None:
        for key, value in values.items():
            self._writers[model.name].add_scalar(key, value, window.index, walltime=window.start_us / 1e6)
