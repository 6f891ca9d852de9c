"""One stage of an experiment as a job of its own: what `exfm train` and `exfm supervise` share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exfm.cli.context import Session
from exfm.errors import ConfigError, suggestion

if TYPE_CHECKING:
    from exfm.config.loading import Experiment
    from exfm.training.loop import StreamLoop

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


@dataclass(frozen=True)
class Follow:
    """Whether a job waits for more, and for how long."""

    follow: bool
    idle_s: float | None


def run_job(
    session: Session,
    config: str,
    overrides: list[str],
    models: Sequence[str],
    stage: Literal["train", "supervise"],
    follow: Follow,
) -> None:
    """Loads the experiment and does the windows of one stage of some models."""
    from exfm.config.loading import load_experiment

    experiment = load_experiment(config, overrides, block=session.block)
    chosen = {name for model in models for name in _arms(experiment, model, stage)}
    names = tuple(arm.name for arm in experiment.arms if arm.name in chosen)
    title = f"{stage} {', '.join(dict.fromkeys(models))}"

    from exfm.reporting.progress import StreamProgress
    from exfm.supervision.store import Store
    from exfm.training.loop import StreamLoop
    from exfm.training.run import build_plan, open_run

    store = Store(experiment.run_dir)
    open_run(experiment, store)
    train, label = (names, ()) if stage == "train" else ((), names)
    with StreamProgress(title) as progress:
        loop = StreamLoop(experiment, store, build_plan(experiment), progress.update, train, label)
        done = _advance(loop, follow)
    loop.ranks.close()
    if not loop.ranks.is_first:
        return
    rest = f"; waiting for {loop.waiting_for}" if loop.waiting_for else "; all there is"
    typer.echo(f"{title}: {done} windows done{rest}")


def _advance(loop: StreamLoop, follow: Follow) -> int:
    done = loop.advance(complete_windows_only=follow.follow)
    idle_since = time.monotonic()
    while follow.follow:
        news = loop.advance(complete_windows_only=True)
        done += news
        if news:
            idle_since = time.monotonic()
        elif follow.idle_s is not None and loop.ranks.agree(time.monotonic() - idle_since >= follow.idle_s):
            return done + loop.advance()
        else:
            time.sleep(POLL_S)
    return done


def _arms(experiment: Experiment, model: str, stage: str) -> tuple[str, ...]:
    names = tuple(arm.name for arm in experiment.arms if model in (arm.name, arm.base))
    if not names:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, experiment.config.models)}")
    if stage == "supervise":
        taught = {teacher for arm in experiment.arms for teacher in arm.teachers}
        if model not in taught:
            raise ConfigError(f"--model: nobody learns from {model!r}.{suggestion(model, taught)}")
        if not experiment.config.models[model].supervision.delay:
            raise ConfigError(
                f"--model: {model!r} has no supervision.delay: it labels with its own forward pass while "
                f"`exfm train --model {model}` trains it"
            )
        return (model,)
    return names
