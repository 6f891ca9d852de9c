"""Tracker `wandb`: a run of Weights & Biases for each model, grouped by experiment."""

from __future__ import annotations

import hashlib
from typing import Any, ClassVar, Literal

from pydantic import Field

import exfm
from exfm.events import RunEnded, SnapshotHeld, TrackedModel, TrackedRun, WindowCommitted


class WandbTracker(exfm.Tracker):
    """Logs to Weights & Biases, online or to files for ``wandb sync``; needs ``exfm[wandb]``.

    Steps are windows. A job that starts again goes on in the same runs: their ids follow from the run's folder and the
    model. The key of the account comes from ``WANDB_API_KEY`` or from ``wandb login``, never from the experiment.

    Example::

        trackers: [{name: wandb, project: ads, mode: offline}]
    """

    name: ClassVar[str] = "wandb"
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `wandb`."""

        project: str = Field("exfm", min_length=1, description="The project.")
        entity: str = Field("", description="The user or team; by default that of the account.")
        mode: Literal["online", "offline", ""] = Field(
            "", description="offline: files that `wandb sync` sends later; by default as WANDB_MODE says, or online."
        )
        folder: str = Field(".", min_length=1, description="The local folder in which W&B makes its folder wandb.")

    def __init__(self, config: Config, run: TrackedRun) -> None:
        super().__init__(config, run)
        try:
            import wandb
        except ImportError as error:
            raise ValueError(f"W&B cannot be imported ({error}): pip install 'exfm[wandb]'") from error
        self._library: Any = wandb
        self._runs: dict[str, Any] = {}

    def window_committed(self, event: WindowCommitted) -> None:
        """Logs the figures of a window."""
        # With its step, because W&B ignores a step that it has already: a window that is sent again changes nothing.
        self._open(event.model).log({**event.figures(), "window": event.window.index}, step=event.window.index)

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Sets the newest held snapshot in the run's summary."""
        self._open(event.model).summary["snapshot_held"] = str(event.window)

    def run_ended(self, event: RunEnded) -> None:
        """Sets the figures of the whole run, and ends the runs."""
        for model in event.models:
            if event.figures.get(model.name):
                self._open(model).summary.update(event.figures[model.name])
        for name, run in self._runs.items():
            run.finish(exit_code=0 if event.outcome in ("complete", "ended") else 1)
            self._runs[name] = None

    def close(self) -> None:
        """Ends the runs that have not ended."""
        for run in self._runs.values():
            if run is not None:
                run.finish()
        self._runs.clear()

    def _open(self, model: TrackedModel) -> Any:
        if self._runs.get(model.name) is None:
            self._runs[model.name] = self._library.init(
                project=self.config.project,
                entity=self.config.entity or None,
                group=self.run.name,
                name=model.name,
                id=hashlib.sha256(model.identity.encode()).hexdigest()[:16],
                resume="allow",
                reinit="create_new",  # a run for each model, side by side
                mode=self.config.mode or None,
                dir=self.config.folder,
                config=dict(model.params),
                settings=self._library.Settings(silent=True, console="off"),
            )
        return self._runs[model.name]
