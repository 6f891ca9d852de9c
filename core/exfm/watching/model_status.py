"""Computes how a model stands from its newest commits: its window, figures, supervision and snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice, pairwise
from statistics import median
from typing import Final

from exfm.evaluation.label_kinds import from_counters
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.mappings import map_values
from exfm.storage.commits import NONE, Commit, CommitLog, Stage
from exfm.supervision.coverage import Coverage

DAY_US: Final = 86_400_000_000

_RECENT: Final = 8
"""Windows whose times between commits say how long one takes: few to read, and more than a single slow window."""

_LONGEST_HOLD: Final = 1_000
"""Held snapshots in a row that are read at most to find a published snapshot."""


@dataclass(frozen=True)
class TaskFigures:
    """Scores of a window's prequential predictions.

    Attributes:
        ne: of the model's newest window.
        ne_before: of the window a day before, or of the window before where that is not committed.
    """

    ne: float | None
    ne_before: float | None
    calibration: float | None


@dataclass(frozen=True)
class TeacherFigures:
    """Describes the supervision by a teacher in a model's newest window, and how far ahead the teacher is.

    Attributes:
        hit_rate: share of the examples that the teacher has supervised.
        age_s: their mean age in seconds.
        behind_windows: windows that the teacher has supervised and the model has not trained on; None if unknown.
    """

    hit_rate: float | None
    age_s: float | None
    behind_windows: int | None = None


@dataclass(frozen=True)
class SnapshotFigures:
    """Describes the snapshots of a model.

    Attributes:
        in_use: version of the newest published snapshot; None if there is none.
        newest: version of the newest snapshot.
        held: by task, why a gate holds the newest; empty if it is published.
    """

    in_use: int | None
    newest: int
    held: Mapping[str, str]


@dataclass(frozen=True)
class Chain:
    """Describes the commits of a stage of a model.

    Attributes:
        newest: the newest commit; None without any.
        interval_s: the median time between two of the newest commits; None where there are fewer than two.
    """

    newest: Commit | None = None
    interval_s: float | None = None

    @property
    def window(self) -> Window | None:
        """The newest committed window."""
        return None if self.newest is None else self.newest.window

    def silent_s(self, now: datetime) -> float | None:
        """Returns the seconds since the newest commit."""
        if self.newest is None:
            return None
        return (now - datetime.fromisoformat(self.newest.written_at)).total_seconds()


@dataclass(frozen=True)
class Standing:
    """Describes how a model stands.

    Attributes:
        compared_with: the window of ``TaskFigures.ne_before``.
    """

    trained: Chain = field(default_factory=Chain)
    labelled: Chain | None = None
    tasks: Mapping[str, TaskFigures] = field(default_factory=dict)
    compared_with: Window | None = None
    teachers: Mapping[str, TeacherFigures] = field(default_factory=dict)
    snapshot: SnapshotFigures | None = None

    @property
    def rows_per_second(self) -> float | None:
        """Examples of the newest window over the seconds of their training."""
        if self.trained.newest is None or not self.trained.newest.counters["seconds"]:
            return None
        counters = self.trained.newest.counters
        return float(counters["examples"] / counters["seconds"])


def read_chain(log: CommitLog, stage: Stage, model: str) -> Chain:
    """Reads the newest commits of a stage of a model.

    Raises:
        RunError: a manifest is damaged or missing.
    """
    head = log.head(stage, model)
    if head == NONE:
        return Chain()
    times: list[datetime] = []
    for index in islice(log.newest_first(stage, model), _RECENT):
        times.append(datetime.fromisoformat(log.load(stage, model, index).written_at))
    intervals = [(later - earlier).total_seconds() for later, earlier in pairwise(times)]
    # The median, because a pause between two jobs would spoil a mean.
    return Chain(log.load(stage, model, head), median(intervals) if intervals else None)


def read_standing(trained: tuple[CommitLog, str], labelled: tuple[CommitLog, str] | None) -> Standing:
    """Reads how a model stands.

    Raises:
        RunError: a manifest is damaged or missing.
    """
    log, model = trained
    labels = None if labelled is None else read_chain(labelled[0], "supervise", labelled[1])
    chain = read_chain(log, "train", model)
    if chain.newest is None:
        return Standing(labelled=labels)
    before = _commit_before(log, model, chain.newest)
    teachers: dict[str, TeacherFigures] = {}
    for name, counted in chain.newest.counters["teachers"].items():
        coverage = Coverage.from_counters(counted)
        teachers[name] = TeacherFigures(coverage.hit_rate, coverage.age_s)
    return Standing(
        trained=chain,
        labelled=labels,
        tasks=_figures(chain.newest, before),
        compared_with=None if before is None else before.window,
        teachers=teachers,
        snapshot=_snapshots(log, model, chain.newest),
    )


def scores(commit: Commit) -> dict[str, Moments]:
    """Returns the sums of a window's prequential predictions by task; empty if an earlier exfm kept none."""
    return map_values(from_counters, commit.counters.get("prequential", {}))


def _figures(newest: Commit, before: Commit | None) -> dict[str, TaskFigures]:
    earlier = {} if before is None else scores(before)
    figures: dict[str, TaskFigures] = {}
    for task, moments in scores(newest).items():
        past = earlier.get(task)
        figures[task] = TaskFigures(moments.ne, None if past is None else past.ne, moments.calibration)
    return figures


def _commit_before(log: CommitLog, model: str, newest: Commit) -> Commit | None:
    """Reads the commit of a day before, or of the window before; None without any."""
    window = newest.window
    length_us = window.end_us - window.start_us
    # Of the same hour, because traffic differs between day and night.
    if DAY_US % length_us == 0:
        yesterday = window.index - DAY_US // length_us
        if yesterday >= 0 and log.has("train", model, yesterday):
            return log.load("train", model, yesterday)
    return None if newest.previous == NONE else log.load("train", model, newest.previous)


def _snapshots(log: CommitLog, model: str, newest: Commit) -> SnapshotFigures:
    held = newest.counters.get("held") or {}
    in_use = next(_published(log, model), None)
    return SnapshotFigures(in_use, newest.window.index, held)


def _published(log: CommitLog, model: str) -> Iterator[int]:
    """Yields the versions of the published snapshots, newest first."""
    for index in islice(log.newest_first("train", model), _LONGEST_HOLD):
        commit = log.load("train", model, index)
        # A window without rows has no snapshot: it is that of the window before.
        if commit.files and not commit.counters.get("held"):
            yield index
