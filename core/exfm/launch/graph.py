"""Computes the graph of an experiment's jobs: their commands, inputs, outputs, order and needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Literal

from exfm.config.loading import Experiment
from exfm.config.retention import parameter_teachers
from exfm.errors import ConfigError
from exfm.interfaces.launcher import Fleet, Job, LauncherConfig
from exfm.launch.groups import Group
from exfm.launch.job_needs import job_needs
from exfm.launch.kept_groups import GROUPS_FILE
from exfm.redaction import without_credentials
from exfm.storage.workspace import Workspace

STREAM = "stream"
REPORT = "report"

Ending = Literal["never", "idle", "done"]
"""End of the jobs of a fleet: never; when nothing has arrived for a while; when all that is there is done."""


@dataclass(frozen=True)
class Commands:
    """Writes the command lines of jobs.

    Attributes:
        config: the experiment file, as the user has named it.
        overrides: ``key=value`` each.
        block: plugins that are never imported.
        ending: when the jobs end.
        idle_s: of jobs that end when idle, after so many seconds without news.
    """

    config: str
    overrides: Sequence[str] = ()
    block: Sequence[str] = ()
    ending: Ending = "never"
    idle_s: float = 60.0

    @property
    def follows(self) -> bool:
        """Tells whether jobs wait for files that are still to come."""
        return self.ending != "done"

    def stage(self, stage: str, models: Collection[str]) -> tuple[str, ...]:
        """Returns the command of a stage of some models."""
        options = [word for model in models for word in ("--model", model)]
        # Jobs that end have no later call that would do the last window when all of its rows are there.
        options += ["--follow"] if self.follows else ["--final"]
        if self.ending == "idle":
            options += ["--idle-timeout", f"{self.idle_s:g}"]
        return (*self.whole(stage), *options)

    def whole(self, command: str) -> tuple[str, ...]:
        """Returns a command for the whole experiment."""
        blocked = [word for name in self.block for word in ("--block-plugin", name)]
        # Without those of the launcher, on which no job depends: a change of it leaves commands as they are.
        overrides = [text for text in self.overrides if not text.startswith(("launcher.", "launcher="))]
        return ("exfm", *blocked, command, self.config, *overrides)


def build_fleet(experiment: Experiment, launcher: LauncherConfig, groups: Sequence[Group], commands: Commands) -> Fleet:
    """Returns the jobs of an experiment, each after the jobs that it waits for."""
    jobs: list[Job] = []
    for group in groups:
        jobs.append(_trainer(experiment, group, commands))
    for arm in experiment.arms:
        if arm.labels_later:
            jobs.append(_labeller(experiment, arm.name, commands))
    jobs += [_labeller(experiment, name, commands) for name in experiment.frozen]
    jobs = _in_order(_linked(jobs))
    # The report waits for the end of all jobs, which never comes where they follow for ever.
    if commands.ending != "never":
        jobs.append(_report(jobs, commands))
    sized: list[Job] = []
    for job in jobs:
        cores, memory_bytes = job_needs(experiment, launcher, job.models)
        sized.append(replace(job, cores=cores, memory_bytes=memory_bytes))
    # The fleet is printed, and written into files of engines.
    run_dir = without_credentials(experiment.run_dir)
    return Fleet(experiment.config.name, run_dir, log_folder(experiment), tuple(sized))


def log_folder(experiment: Experiment) -> str:
    """Returns the folder of the jobs' logs: in the run's folder if it is on a disk, else under the working folder."""
    workspace = Workspace(experiment.run_dir)
    # A process appends to its log and holds a lock beside it, and a store offers neither.
    return workspace.path("logs") if workspace.is_local else f"logs/{experiment.config.name}"


def _trainer(experiment: Experiment, group: Group, commands: Commands) -> Job:
    """Describes the job that trains a group."""
    reads: list[str] = [STREAM]
    writes: list[str] = []
    for arm in experiment.arms:
        # By the base, because a control is trained in the job of its model.
        if arm.base not in group.models:
            continue
        for teacher in arm.teachers:
            reads.append(_supervision(experiment, teacher))
        reads += [_snapshots(experiment, teacher) for teacher in sorted(parameter_teachers(arm))]
        start = arm.config.init_from
        # A snapshot of another run is there already: no job of this fleet writes it.
        if start is not None and start.model and not start.run:
            reads.append(f"snapshots/{start.model}")
        writes += [f"predictions/{arm.name}", f"snapshots/{arm.name}"]
        # With a delay the labels come from the labeller's job instead.
        if arm.stores and not arm.labels_later:
            writes.append(f"supervision/{arm.name}")
    # A group may hold both ends of a start from another model, and a job must not wait for itself.
    inputs = [path for path in dict.fromkeys(reads) if path not in writes]
    return Job(group.name, commands.stage("train", group.models), group.models, tuple(inputs), tuple(writes),
               follows=commands.follows)  # fmt: skip


def _labeller(experiment: Experiment, teacher: str, commands: Commands) -> Job:
    """Describes the job that labels for a teacher's students with its snapshots."""
    command = commands.stage("supervise", [teacher])
    reads, writes = (STREAM, _snapshots(experiment, teacher)), (f"supervision/{teacher}",)
    return Job(f"supervise-{teacher}", command, (teacher,), reads, writes, follows=commands.follows)


def _report(jobs: Sequence[Job], commands: Commands) -> Job:
    """Describes the job that evaluates the commits of all others; it trains nothing."""
    reads = [path for job in jobs for path in job.writes if path.startswith("predictions/")]
    names = tuple(job.name for job in jobs)
    return Job(REPORT, commands.whole("run"), (), tuple(reads), ("results.json", "report.html"), names, follows=False)


def _supervision(experiment: Experiment, teacher: str) -> str:
    """Returns the path of a teacher's supervision; with the folder or file, where it is not of this run."""
    external = experiment.config.external_teachers
    if teacher in external:
        return without_credentials(external[teacher].path)
    if teacher in experiment.lenders and teacher not in experiment.frozen:
        lender = experiment.lenders[teacher]
        return f"{without_credentials(lender.run).rstrip('/')}/supervision/{lender.model}"
    return f"supervision/{teacher}"


def _snapshots(experiment: Experiment, teacher: str) -> str:
    """Returns the path of a teacher's snapshots, with the folder of its run if that is another."""
    if teacher in experiment.lenders:
        lender = experiment.lenders[teacher]
        return f"{without_credentials(lender.run).rstrip('/')}/snapshots/{lender.model}"
    return f"snapshots/{teacher}"


def _linked(jobs: Sequence[Job]) -> list[Job]:
    """Adds to each job the names of the jobs that write its inputs."""
    writer: dict[str, str] = {}
    for job in jobs:
        writer.update(dict.fromkeys(job.writes, job.name))
    linked: list[Job] = []
    for job in jobs:
        names = dict.fromkeys(writer[path] for path in job.reads if path in writer)
        linked.append(replace(job, waits_for=tuple(names)))
    return linked


def _in_order(jobs: Sequence[Job]) -> list[Job]:
    """Sorts jobs so that each comes after those that it waits for, and otherwise as they are.

    Raises:
        ConfigError: two jobs wait for each other, which groups that were kept may do in a file that has changed.
    """
    sorter = TopologicalSorter({job.name: job.waits_for for job in jobs})
    try:
        sorter.prepare()
    except CycleError as error:
        raise ConfigError(
            f"{GROUPS_FILE}: its groups wait for each other in this file: {' for '.join(error.args[1])}. Stop the "
            "run's jobs and remove that file from the run's folder: models are packed anew then"
        ) from None
    ordered: list[Job] = []
    while sorter.is_active():
        ready = sorter.get_ready()
        ordered += [job for job in jobs if job.name in ready]
        sorter.done(*ready)
    return ordered
