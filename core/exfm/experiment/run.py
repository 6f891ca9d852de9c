"""Runs a whole experiment: the stream loop, then evaluation and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exfm.bookkeeping.progress import Progress
from exfm.bookkeeping.running_job import RunningJob
from exfm.config.baselines import shared_tasks
from exfm.config.checks import Arm
from exfm.config.experiment import ComparedPair
from exfm.config.loading import Experiment
from exfm.config.run_files import JOBS_FOLDER, REPORT_FILE, RESULTS_FILE, RUN_FILES, TRACKING_FOLDER
from exfm.errors import ConfigError, RunError
from exfm.evaluation.evaluate import ControlComparison, ExperimentView, Pair, evaluate
from exfm.interfaces.events import Event
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.mappings import by_name
from exfm.redaction import concealed, redact
from exfm.reporting.progress import StreamProgress, in_notebook
from exfm.reporting.results import assemble
from exfm.scheduling.identity import component_notes, open_run
from exfm.storage.commits import NONE
from exfm.supervision.store import Store, open_store
from exfm.tracking.live import open_tracking
from exfm.training.loop import StreamLoop


def run(
    experiment: Experiment,
    on_progress: Callable[[Progress], None] | None = None,
    *,
    windows: int | None = None,
    on_window: Callable[[Progress], None] = lambda _: None,
    on_event: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Runs an experiment, as ``exfm.run`` says, which has the same arguments and errors.

    Returns:
        The content of results.json; an empty mapping on any rank but zero.
    """
    if windows is not None and windows < 1:
        raise ConfigError(f"windows: a run has at least 1 window; given: {windows}")
    if on_progress is None and in_notebook():
        with StreamProgress(experiment.config.name) as display:
            return run(experiment, display.update, windows=windows, on_window=on_window, on_event=on_event)
    store = open_store(experiment)
    plan = build_plan(experiment)
    config_yaml = open_run(experiment, store) if plan.process_group.is_rank_zero else ""
    trained = [arm.name for arm in experiment.arms if arm.name not in store.borrowed]
    labelled = [*trained, *experiment.frozen]
    is_rank_zero = plan.process_group.is_rank_zero
    tracking = open_tracking(experiment, trained, is_rank_zero, on_event)
    with RunningJob(store.workspace, "run", "run", trained, is_rank_zero) as job, tracking:

        def progress(update: Progress) -> None:
            job.update(update, loop.stream_until_us)
            if on_progress is not None:
                on_progress(update)

        def after_window(ended: Progress) -> None:
            on_window(ended)
            tracking.window(ended)

        loop = StreamLoop(experiment, store, plan, progress, trained, labelled, after_window)
        results = _advance(experiment, store, loop, job, config_yaml, windows)
        if results and not (loop.waiting_for or loop.stopped):
            tracking.complete()
    return results


def _advance(
    experiment: Experiment, store: Store, loop: StreamLoop, job: RunningJob, config_yaml: str, windows: int | None
) -> dict[str, Any]:
    """Does the windows of a run, and on rank zero evaluates them and writes the results."""
    done = loop.advance(first_windows=windows)
    job.leave_waiting(loop.waiting_for)
    assert store.borrowed or not loop.waiting_for, loop.waiting_for
    if loop.waiting_for and not experiment.lenders:
        raise RunError(f"{experiment.run_dir}: it waits for {loop.waiting_for}: the point that trains it has not ended")
    # Closed before the evaluation, so that the other processes may end.
    loop.process_group.close()
    if not loop.process_group.is_rank_zero:
        return {}
    time = loop.clock.as_dict() | {
        "windows_done": done,
        "last_commit": last_commit(experiment, store),
        "waiting_for": loop.waiting_for or None,
        "stopped": loop.stopped,
    }
    with loop.clock.evaluating():
        return finish(experiment, store, time, config_yaml)


def build_plan(experiment: Experiment) -> ParallelPlan:
    """Builds the experiment's parallel plan, connected to the other processes.

    Raises:
        ConfigError: the plan refuses the number of processes.
    """
    try:
        plan: ParallelPlan = experiment.config.parallel.build()
    except ValueError as error:
        raise ConfigError(f"parallel: {error}") from error
    return plan


def start_over(store: Store) -> None:
    """Removes a run from its folder, and leaves other files in the folder."""
    workspace = store.workspace
    # Newest manifests first, so that a kill meanwhile leaves the beginning of a run.
    for stage in workspace.names("commits"):
        for model in workspace.names(f"commits/{stage}"):
            for name in reversed(workspace.names(f"commits/{stage}/{model}")):
                workspace.remove_file(f"commits/{stage}/{model}/{name}")
    folders = ("commits", "late", "models", "predictions", "supervision", "snapshots", "aliases", "vacuum")
    for name in (*folders, JOBS_FOLDER, TRACKING_FOLDER, "launch"):
        workspace.remove_tree(name)
    for name in RUN_FILES:
        workspace.remove_file(name)


def last_commit(experiment: Experiment, store: Store) -> str | None:
    """Returns the time of a run's newest commit, ISO 8601; None without commits."""
    written: list[str] = []
    for arm in experiment.arms:
        head = store.log.head("train", arm.name)
        if head != NONE:
            written.append(store.log.load("train", arm.name, head).written_at)
    return max(written, default=None)


def finish(experiment: Experiment, store: Store, time: dict[str, Any], config_yaml: str) -> dict[str, Any]:
    """Evaluates the committed windows and writes results.json and report.html.

    Args:
        time: the `time` section of results.json.
    """
    from exfm.reporting.diagnosis_table import kept_diagnosis
    from exfm.reporting.html import render_report  # late, because matplotlib would delay the first batch

    figures = evaluate(store, evaluation_view(experiment))
    results: dict[str, Any] = concealed(assemble(experiment, store, figures, time))
    results["notes"] = list(map(redact, (*results["notes"], *component_notes(experiment, store))))
    store.workspace.write_json(RESULTS_FILE, results)
    page = render_report(results, config_yaml, kept_diagnosis(store.workspace, results))
    store.workspace.write(REPORT_FILE, page.encode())
    return results


def evaluation_view(experiment: Experiment) -> ExperimentView:
    """Selects from an experiment the models, controls and pairs that evaluation compares."""
    arms = by_name((*experiment.arms, *experiment.lent_arms))
    external = {**experiment.config.external_tasks(), **experiment.frozen_tasks()}
    comparisons: list[ControlComparison] = []
    for arm in experiment.arms:
        if arm.control is not None:
            trained = tuple(name for name in arm.teachers if name in arms)
            read = tuple((name, external[name]) for name in arm.teachers if name in external)
            comparisons.append(ControlComparison(arm.name, arm.control, trained, read))
    pairs = tuple(Pair(pair.model, pair.baseline, _tasks(pair, arms)) for pair in experiment.config.compare)
    evaluation = experiment.config.evaluation
    return ExperimentView(
        models=tuple((arm.name, arm.tasks) for arm in arms.values()),
        control_comparisons=tuple(comparisons),
        pairs=pairs,
        skip=evaluation.skip,
        after_us=max((arm.config.epochs.until_us for arm in experiment.arms if arm.config.epochs), default=0),
        bootstrap_replicates=evaluation.replicates,
        bootstrap_seed=experiment.config.seed,
        recall_at=evaluation.recall_at,
        metrics=tuple(spec.build() for spec in evaluation.metrics),
    )


def _tasks(pair: ComparedPair, arms: Mapping[str, Arm]) -> tuple[str, ...]:
    """Returns the tasks by which two models are compared."""
    if pair.task is None:
        return shared_tasks(arms[pair.model], arms[pair.baseline])
    return (pair.task,)
