"""Commits windows: a window of a stage counts as done when its manifest exists.

A stage first writes its files under names that depend on model, window and content. Then it creates the manifest that
lists them with their checksums; of several writers, a single writer succeeds. After a crash before the manifest, the
repeated window writes equal files again.

Each manifest names its predecessor. So windows without rows need no manifest, and a lost manifest is noticed.
Manifests are read by name: if a listing lacks the newest, a reader only waits or repeats a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.mappings import map_values
from exfm.storage.hashing import FileRecord
from exfm.storage.late_log import late_file
from exfm.storage.manifests import file_records, seal, unseal
from exfm.storage.workspace import Workspace, numbered

Stage = Literal["train", "supervise"]
STAGES: tuple[Stage, ...] = ("train", "supervise")


class OtherContentError(RunError):
    """Reports that a window was committed before with other files."""


NONE = -1
"""Index that stands for the window before the first."""

_RECENT = 64
"""Manifests that a log keeps in memory: the newest few of each model of a job."""


@dataclass(frozen=True)
class WindowRead:
    """Records the state of the stream when a window was read.

    Attributes:
        parts: versions of the stream's parts that overlapped the window, by name.
        until_us: time until which the stream was complete; before the window's end if more rows could still arrive.
    """

    parts: Mapping[str, str] = field(default_factory=dict)
    until_us: int | None = None


@dataclass(frozen=True)
class Commit:
    """Describes a finished window of a stage.

    Attributes:
        window: the finished window.
        counters: counters that results.json sums, such as examples seen and seconds spent.
        files: files of the window, by role; empty if all of its rows were skipped.
        previous: index of the window that the stage had committed before; ``NONE`` for its first.
        read: state of the stream when the window was read.
        written_at: time of the commit, ISO 8601, UTC; set by ``CommitLog.add``.
    """

    window: Window
    counters: Mapping[str, Any]
    files: Mapping[str, FileRecord]
    previous: int = NONE
    read: WindowRead = WindowRead()
    written_at: str = ""

    @property
    def is_incomplete(self) -> bool:
        """Tells whether more rows of the window could still arrive when it was read."""
        return self.read.until_us is not None and self.read.until_us < self.window.end_us


@dataclass(frozen=True)
class NewCommit:
    """Names the stage and model of a commit that is to be added."""

    stage: Stage
    model: str
    commit: Commit


@dataclass(frozen=True)
class _Link:
    """Holds the fields of a manifest that are read most: the index of the window before, and the window."""

    previous: int
    window: Window
    has_files: bool


class CommitLog:
    """Reads and creates the manifests of a workspace, under ``commits/STAGE/MODEL/``."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._heads: dict[tuple[Stage, str], int] = {}
        # Chains whose newest manifest is of this job: no other job extends them, so the head need not be listed.
        self._extended: set[tuple[Stage, str]] = set()
        # The manifests read last, with their bytes: to parse and check them takes longer than to read them again.
        self._recent: dict[str, tuple[bytes, Commit]] = {}
        # The cache is never stale, because manifests do not change.
        self._links: dict[tuple[Stage, str, int], _Link] = {}

    def has(self, stage: Stage, model: str, window: int) -> bool:
        """Tells whether the window is committed, by reading its manifest and not a listing."""
        if window == NONE or self._read(stage, model, window) is None:
            return False
        self.note_head(stage, model, window)
        return True

    def note_head(self, stage: Stage, model: str, window: int) -> None:
        """Remembers that a window is committed, because a later listing may lack it."""
        self._heads[stage, model] = max(window, self._heads.get((stage, model), NONE))

    def head(self, stage: Stage, model: str) -> int:
        """Returns the index of the newest committed window, or ``NONE``."""
        head = self._heads.get((stage, model), NONE)
        if (stage, model) in self._extended:
            return head
        for window in reversed(self._listed(stage, model)):
            # The newest listed manifest may be truncated, if its writer died while it was being stored.
            if window <= head or self._read(stage, model, window) is not None:
                head = max(head, window)
                break
        if head != NONE:
            self.note_head(stage, model, head)
        return head

    def _listed(self, stage: Stage, model: str) -> list[int]:
        return numbered(self.workspace.names(f"commits/{stage}/{model}"), ".json")

    def newest_first(self, stage: Stage, model: str) -> Iterator[int]:
        """Yields the indices of the committed windows, from the newest back along the chain of manifests.

        Raises:
            RunError: a manifest in the chain is missing or damaged.
        """
        window, follower = self.head(stage, model), NONE
        while window != NONE:
            key = (stage, model, window)
            if key not in self._links:
                commit = self._read(stage, model, window)
                if commit is None:
                    raise self._gap(stage, model, window, follower)
                self._links[key] = _Link(commit.previous, commit.window, bool(commit.files))
            yield window
            window, follower = self._links[key].previous, window

    def windows(self, stage: Stage, model: str) -> list[int]:
        """Lists the indices of the committed windows, in order.

        Raises:
            RunError: a manifest in the chain is missing or damaged.
        """
        return list(self.newest_first(stage, model))[::-1]

    def windows_with_files(self, stage: Stage, model: str) -> list[Window]:
        """Lists the committed windows that have files, in order.

        Raises:
            RunError: a manifest in the chain is missing or damaged.
        """
        links = [self._links[stage, model, window] for window in self.windows(stage, model)]
        return [link.window for link in links if link.has_files]

    def _gap(self, stage: Stage, model: str, window: int, follower: int) -> RunError:
        url = self.workspace.url
        return RunError(
            f"{url}/{_path(stage, model, window)}: the manifest is missing or damaged, and window {follower} of "
            f"{model!r} follows it: doing the window now would train on it after later ones. Put the file back, or go "
            f"back to the windows before it with `exfm repair {url}`"
        )

    def load(self, stage: Stage, model: str, window: int) -> Commit:
        """Reads the manifest of a committed window.

        Raises:
            RunError: the window is not committed, or its manifest is damaged.
        """
        commit = self._read(stage, model, window)
        if commit is None:
            where = self.workspace.name(_path(stage, model, window))
            raise RunError(f"{where}: no such commit, or a damaged one{self.workspace.remedy}")
        return commit

    def _read(self, stage: Stage, model: str, window: int) -> Commit | None:
        """Reads a manifest; returns None if it does not exist or is truncated.

        Raises:
            RunError: the manifest is damaged or of an old version.
        """
        path = _path(stage, model, window)
        try:
            data = self.workspace.read(path)
            if path in self._recent and self._recent[path][0] == data:
                return self._recent[path][1]
            raw = unseal(data)
            if raw is None:
                return None
            files = file_records(raw, model)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise RunError(f"{self.workspace.name(path)}: damaged: {error}{self.workspace.remedy}") from error
        if "previous" not in raw:
            raise RunError(
                f"{self.workspace.name(path)}: a manifest of exfm 0.1, which counted windows otherwise. Read the run "
                "with that version, or start over in another run_dir"
            )
        read = WindowRead(**raw["read"])
        commit = Commit(Window(**raw["window"]), raw["counters"], files, raw["previous"], read, raw["written_at"])
        if len(self._recent) >= _RECENT:
            del self._recent[next(iter(self._recent))]
        self._recent[path] = data, commit
        return commit

    def remove_head(self, stage: Stage, model: str) -> None:
        """Removes the newest manifest, so that its window is repeated, and leaves the files of the window."""
        window = self.head(stage, model)
        previous = self.load(stage, model, window).previous
        self.workspace.remove_file(_path(stage, model, window))
        # The repeated window reads the late rows with all others, so they are not late any more.
        self.workspace.remove_file(late_file(model, window))
        self._heads[stage, model] = previous
        self._links.pop((stage, model, window), None)

    def commits(self, stage: Stage, model: str) -> Sequence[Commit]:
        """Reads every manifest of a stage, in order of windows."""
        return [self.load(stage, model, window) for window in self.windows(stage, model)]

    def add(self, stage: Stage, model: str, commit: Commit) -> bool:
        """Commits a window, whose files must have been written before; their data need not be on disk yet.

        Returns:
            True if this call committed the window; False if it was committed before with equal files, by this stage
            before a crash or by a concurrent job.

        Raises:
            OtherContentError: the window was committed before with other files, and that commit is kept.
        """
        new = NewCommit(stage, model, commit)
        with self.adding([new]) as add:
            return add(new)

    @contextmanager
    def adding(self, commits: Sequence[NewCommit]) -> Iterator[Callable[[NewCommit], bool]]:
        """Prepares commits of several stages and models; yields a function that adds a single commit, as ``add`` does.

        When the block begins, the data of all files that the commits name is on disk, because the disk is waited for
        once.
        """
        manifests: dict[str, bytes] = {}
        written: list[FileRecord] = []
        for new in commits:
            manifests[_path(new.stage, new.model, new.commit.window.index)] = seal(_manifest(new.commit))
            written += new.commit.files.values()
        with self.workspace.creating(manifests, written) as create:
            yield lambda new: self._add(new.stage, new.model, new.commit, manifests, create)

    def _add(
        self,
        stage: Stage,
        model: str,
        commit: Commit,
        manifests: Mapping[str, bytes],
        create: Callable[[str], bool],
    ) -> bool:
        path = _path(stage, model, commit.window.index)
        if create(path):
            self._note_extended(stage, model, commit.window.index)
            return True
        standing = self._read(stage, model, commit.window.index)
        if standing is None:  # a truncated manifest, whose writer has died: replace it
            self.workspace.write(path, manifests[path])
            self._note_extended(stage, model, commit.window.index)
            return True
        if standing.files != dict(commit.files):
            raise OtherContentError(
                f"{self.workspace.url}: window {commit.window} of {model!r} was committed by another job, with other "
                f"content; that commit stands ({stage})"
            )
        self.note_head(stage, model, commit.window.index)
        return False

    def _note_extended(self, stage: Stage, model: str, window: int) -> None:
        self.note_head(stage, model, window)
        self._extended.add((stage, model))


def _manifest(commit: Commit) -> dict[str, Any]:
    return {
        "window": asdict(commit.window),
        "previous": commit.previous,
        "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "counters": dict(commit.counters),
        "files": map_values(asdict, commit.files),
        "read": asdict(commit.read),
    }


def _path(stage: Stage, model: str, window: int) -> str:
    return f"commits/{stage}/{model}/{window:06d}.json"
