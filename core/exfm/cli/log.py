"""`exfm log`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.jobs import POLL_S
from exfm.errors import ConfigError

if TYPE_CHECKING:
    from exfm.tracking.to_mlflow import MlflowTracker
    from exfm.tracking.to_tensorboard import TensorBoardTracker
    from exfm.tracking.tracked_run import TrackedRun


def command(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")],
    tensorboard: Annotated[str | None, typer.Option(metavar="LOGDIR", help="TensorBoard's folder.")] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow's tracking URI.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new windows until the run is done.")] = False,
) -> None:
    """Writes the committed figures of a run to TensorBoard or MLflow; a second call adds new figures."""
    from exfm.tracking.tracked_run import TrackedRun

    if tensorboard is None and mlflow is None:
        raise ConfigError("say where to: --tensorboard LOGDIR, --mlflow URI, or both")
    run = TrackedRun(run_dir)
    trackers: list[TensorBoardTracker | MlflowTracker] = []
    if tensorboard is not None:
        from exfm.tracking.to_tensorboard import TensorBoardTracker

        trackers.append(TensorBoardTracker(tensorboard, run))
    if mlflow is not None:
        from exfm.tracking.to_mlflow import MlflowTracker

        trackers.append(MlflowTracker(mlflow, run))
    try:
        _log(run, trackers, follow)
    finally:
        for tracker in trackers:
            tracker.close()


def _log(run: TrackedRun, trackers: list[TensorBoardTracker | MlflowTracker], follow: bool) -> None:
    """Logs the windows that trackers lack, until the run is complete or, without ``follow``, once."""
    while True:
        # Read before the windows, because a run that completes in between has more windows than are logged below.
        complete = run.complete
        windows = 0
        for tracker in trackers:
            for model in run.models:
                for window, values in run.windows(model, tracker.last_window(model)):
                    tracker.window(model, window, values)
                    windows += 1
        if windows:
            typer.echo(f"{run.url}: {windows} windows logged")
        if complete or not follow:
            break
        time.sleep(POLL_S)
    if complete:
        for tracker in trackers:
            for model in run.models:
                tracker.summary(model, run.summary(model))
    state = "complete" if complete else "under way: call again, or give --follow"
    typer.echo(f"{run.url}: {state}")
