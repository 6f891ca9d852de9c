"""A run in TensorBoard: one TensorBoard run for each model, whose steps are windows and whose clock is the stream's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window
from exfm.tracking.figures import TrackedModel, TrackedRun

_SUFFIX = ".exfm"


class TensorBoardTracker:
    """Writes event files under ``LOGDIR/NAME/MODEL``, in place of those that an earlier call has written there.

    Args:
        logdir: the folder that TensorBoard is started with; a local one.

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
            for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
                old.unlink()
            writer = SummaryWriter(str(folder), filename_suffix=_SUFFIX)
            writer.add_text("config", f"```yaml\n{run.config_yaml}```")
            self._writers[model.name] = writer

    def last_window(self, model: TrackedModel) -> int:
        """The last window that is written: none, as every call begins anew."""
        return self._last[model.name].index if model.name in self._last else -1

    def window(self, model: TrackedModel, window: Window, values: Mapping[str, float]) -> None:
        """Adds a window's figures."""
        self._last[model.name] = window
        self._add(model, values, window)
        self._writers[model.name].flush()

    def summary(self, model: TrackedModel, values: Mapping[str, float]) -> None:
        """Adds the figures of the run, at its last window."""
        if model.name in self._last:
            self._add(model, values, self._last[model.name])

    def close(self) -> None:
        """Closes the files."""
        for writer in self._writers.values():
            writer.close()

    def _add(self, model: TrackedModel, values: Mapping[str, float], window: Window) -> None:
        for key, value in values.items():
            self._writers[model.name].add_scalar(key, value, window.index, walltime=window.start_us / 1e6)
