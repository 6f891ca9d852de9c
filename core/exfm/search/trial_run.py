"""Trains an arm of a trial window by window, with teachers that other folders of the search have trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from exfm.bookkeeping.progress import Progress
from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import RunError
from exfm.experiment.run import build_plan
from exfm.experiment.shared_models import model_keys
from exfm.scheduling.identity import open_run
from exfm.search.arms import needed_teachers
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store, keep_homes, open_store
from exfm.training.loop import StreamLoop

OnProgress = Callable[[Progress], None]

_KEY_DIGITS = 16  # hexadecimal: 64 bits, far more than a search has teachers


def teacher_folder(name: str, key: str) -> str:
    """Names the folder that trains a teacher, by the checksum of everything that it depends on."""
    return f"teacher-{name}-{key[:_KEY_DIGITS]}"


def train_windows(
    load: Callable[[str], Experiment],
    name: str,
    folder: str,
    windows: int,
    on_progress: OnProgress,
    on_window: OnProgress,
) -> Iterator[Store]:
    """Trains an arm in a folder, window by window, after its teachers; windows that are committed are not run again.

    Each different teacher is trained once, in a folder that all trials with this teacher read.

    Args:
        load: loads the experiment of a trial with a folder of the search as its run_dir.
        name: the arm.
        folder: the arm's folder.
        windows: the number of windows.
        on_progress: called after every chunk of rows.
        on_window: called after every window.

    Yields:
        The arm's folder after each window with rows.

    Raises:
        RunError: a committed file is damaged, or the arm waits for a teacher of another run.
    """
    experiment = load(folder)
    homes: dict[str, str] = {}
    keys = model_keys(experiment)
    for teacher in needed_teachers(experiment, name):
        home = teacher_folder(teacher.name, keys[teacher.name])
        # Teachers come before their students, so that ``homes`` has all that this teacher learns from.
        for _ in _train(load(home), teacher, dict(homes), windows, on_progress, on_window, stepwise=False):
            pass
        homes[teacher.name] = home
    arm = next(arm for arm in experiment.arms if arm.name == name)
    yield from _train(experiment, arm, homes, windows, on_progress, on_window, stepwise=True)


def _train(
    experiment: Experiment,
    arm: Arm,
    homes: dict[str, str],
    windows: int,
    on_progress: OnProgress,
    on_window: OnProgress,
    stepwise: bool,
) -> Iterator[Store]:
    # Before the store is opened, which reads the homes from the folder.
    keep_homes(experiment.run_dir, homes)
    store = open_store(experiment)
    plan = build_plan(experiment)
    open_run(experiment, store, [arm.name])
    loop = StreamLoop(experiment, store, plan, on_progress, [arm.name], [arm.name, *experiment.frozen], on_window)
    try:
        # Window by window only for the arm, whose trial may end after any of them.
        for window in range(1, windows + 1) if stepwise else (windows,):
            loop.advance(first_windows=window)
            # All teachers were trained before, so that nobody would end the wait.
            if loop.waiting_for:
                raise RunError(f"{experiment.run_dir}: {arm.name} waits for {loop.waiting_for}")
            yield store
    finally:
        plan.process_group.close()


def remove_snapshots(run_dir: str) -> None:
    """Removes the weights of a trial that has ended, because nobody goes on with them; its predictions stay."""
    Workspace(run_dir).remove_tree("snapshots")
