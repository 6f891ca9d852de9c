"""Runs a single stage of an experiment as a separate job, for `exfm train` and `exfm supervise`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError, NotYetError, suggestion
from exfm.reporting.log_lines import LogFormat

if TYPE_CHECKING:
    from exfm.bookkeeping.progress import Progress
    from exfm.config.loading import Experiment
    from exfm.training.loop import StreamLoop

logger = logging.getLogger(__name__)

POLL_S = 1.0

FOLLOW = Annotated[
    bool, typer.Option("--follow", help="Wait for windows, supervision and snapshots as they arrive, for ever.")
]
IDLE = Annotated[
    float | None,
    typer.Option(
        help="With --follow: stop when nothing has arrived for so many seconds; the last window is done then."
    ),
]


FINAL = Annotated[
    bool, typer.Option("--final", help="Do the last window too, although more rows of it may still come.")
]


@dataclass(frozen=True)
class Follow:
    """Controls the end of a job.

    Attributes:
        follow: wait for further windows.
        idle_s: with ``follow``, stop after so many seconds without anything new; None: never.
        final: do an incomplete last window too.
    """

    follow: bool
    idle_s: float | None
    final: bool


def run_job(
    session: Session,
    config: str,
    overrides: list[str],
    models: Sequence[str],
    stage: Literal["train", "supervise"],
    follow: Follow,
    log_format: LogFormat,
) -> None:
    """Loads the experiment and does the windows of a stage of some models."""
    experiment = _load(session, config, overrides, follow.follow)
    chosen: set[str] = set()
    for model in models:
        chosen.update(_arm_names(experiment, model, stage))
    # In the order of the experiment, whatever the order of the options.
    names = (*(arm.name for arm in experiment.arms if arm.name in chosen), *(chosen & experiment.frozen.keys()))
    title = f"{stage} {', '.join(dict.fromkeys(models))}"

    from exfm.bookkeeping.running_job import RunningJob
    from exfm.experiment.run import build_plan
    from exfm.reporting.progress import StreamProgress
    from exfm.scheduling.identity import open_run
    from exfm.supervision.store import open_store
    from exfm.tracking.live import open_tracking
    from exfm.training.loop import StreamLoop

    store = open_store(experiment)
    plan = build_plan(experiment)
    is_rank_zero = plan.process_group.is_rank_zero
    train, label = (names, ()) if stage == "train" else ((), names)
    # Only rank 0 writes into the run's folder.
    if is_rank_zero:
        open_run(experiment, store, names)
    record = RunningJob(store.workspace, title, stage, names, is_rank_zero)
    tracking = open_tracking(experiment, train, is_rank_zero)
    with record as job, StreamProgress(title, log_format) as progress, tracking:

        def on_progress(update: Progress) -> None:
            job.update(update, loop.stream_until_us)
            progress.update(update)

        def on_window(ended: Progress) -> None:
            progress.window(ended)
            tracking.window(ended)

        def on_waiting(awaited: str, is_said: bool) -> None:
            job.wait_for(awaited, loop.stream_until_us)
            if not is_said:
                progress.waiting(awaited)

        loop = StreamLoop(experiment, store, plan, on_progress, train, label, on_window)
        done = _advance(loop, follow, on_waiting)
        job.leave_waiting(_missing(loop))
    loop.process_group.close()
    if not loop.process_group.is_rank_zero:
        return
    typer.echo(f"{title}: {done} windows done; {_outlook(loop)}")


def _load(session: Session, config: str, overrides: list[str], follow: bool) -> Experiment:
    """Loads the experiment; with ``follow``, once the runs of its teachers have begun."""
    from exfm.config.loading import load_experiment

    waiting = ""
    while True:
        try:
            return load_experiment(config, overrides, block=session.block)
        except NotYetError as error:
            if not follow:
                raise
            if str(error) != waiting:
                waiting = str(error)
                logger.warning("waiting: %s", waiting)
            time.sleep(POLL_S)


def _missing(loop: StreamLoop) -> str:
    """Names the input that a job waits for; empty at the end of the stream."""
    if loop.waiting_for:
        return loop.waiting_for
    return f"the last rows of window {loop.incomplete}" if loop.incomplete else ""


def _outlook(loop: StreamLoop) -> str:
    """Describes the input that a job waits for, if any."""
    if loop.waiting_for:
        return f"waiting for {loop.waiting_for}"
    if loop.incomplete:
        return f"window {loop.incomplete} waits for its last rows: call again, or give --final to commit it as it is"
    return "all there is"


def _advance(
    loop: StreamLoop, follow: Follow, on_waiting: Callable[[str, bool], None] = lambda awaited, is_said: None
) -> int:
    """Does all windows there are, and with ``follow`` those that arrive; returns how many it did.

    Args:
        on_waiting: called with the input that the job waits for, again and again, and whether a warning has said it.
    """
    if not follow.follow:
        return loop.advance(complete_windows_only=not follow.final)
    done = 0
    idle_since = time.monotonic()
    waiting = ""
    while True:
        start = time.perf_counter()
        try:
            news = loop.advance(complete_windows_only=True)
            reason = _missing(loop) or "more rows of the stream"
        except NotYetError as error:  # an empty folder, a file that is still being written
            news, reason = 0, ""
            if str(error) != waiting:
                waiting = str(error)
                logger.warning("waiting: %s", waiting)
        done += news
        if news:
            idle_since = time.monotonic()
        # Clocks of ranks differ, and a rank that stopped alone would leave the others in a collective.
        elif follow.idle_s is not None and loop.process_group.broadcast(time.monotonic() - idle_since >= follow.idle_s):
            return done + loop.advance()
        else:
            on_waiting(reason or waiting, not reason)
            time.sleep(POLL_S)
            # The look for news besides, which takes long where a folder has many files.
            loop.clock.wait += time.perf_counter() - start


def _arm_names(experiment: Experiment, model: str, stage: str) -> tuple[str, ...]:
    """Lists the arms that a model's name stands for: the model and its control, or in supervision the model alone."""
    if model in experiment.frozen and stage == "supervise":
        return (model,)
    if model in experiment.lenders:
        lender = experiment.lenders[model]
        raise ConfigError(f"--model: {model!r} is a model of the run {lender.run}: run this command with its file")
    names = tuple(arm.name for arm in experiment.arms if model in (arm.name, arm.base))
    if not names:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, experiment.config.models)}")
    if stage == "supervise":
        check_stores(experiment, model)
        if not experiment.config.models[model].supervision.delay:
            raise ConfigError(
                f"--model: {model!r} has no supervision.delay: it labels with its own forward pass while "
                f"`exfm train --model {model}` trains it"
            )
        return (model,)
    return names


def check_stores(experiment: Experiment, model: str) -> None:
    """Checks that a model stores its supervision.

    Raises:
        ConfigError: it does not, or is no model of the file.
    """
    teachers = [arm.name for arm in experiment.arms if arm.stores]
    if model not in teachers:
        raise ConfigError(
            f"--model: nobody learns from {model!r}, and it does not set supervision.store."
            f"{suggestion(model, teachers)}"
        )
