"""Rewinds the models of a damaged run to intact windows; the next run repeats the later windows, with equal files.

A model is rewound to its newest intact snapshot before the first damaged window. Models whose snapshots it then reads
are rewound too, if those snapshots do not exist any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from exfm.interfaces.duration import microseconds
from exfm.storage.chains import Chain, Entry, SnapshotState, read_chain
from exfm.storage.commits import NONE, STAGES, Stage
from exfm.storage.late_log import late_file
from exfm.storage.marks import Rows, take_back
from exfm.storage.orphans import find_orphans
from exfm.supervision.late_labels import labels_manifest
from exfm.supervision.store import Store


@dataclass(frozen=True)
class Ties:
    """Describes the links of a model to other models, which decide what is rewound with it.

    Attributes:
        delay: delay of its supervision; if it is not zero, a labeller writes the supervision instead of the training.
        teaches: whether other models learn from it.
        parameter_teachers: models whose snapshots it reads parameters of.
    """

    delay: timedelta = timedelta(0)
    teaches: bool = False
    parameter_teachers: Collection[str] = ()

    @property
    def supervises(self) -> bool:
        """Tells whether the model's training writes its supervision."""
        return self.teaches and not self.delay


@dataclass
class Repair:
    """Lists the damage of a run, and the files that a repair removes.

    Attributes:
        windows: number of windows that were checked.
        files: number of files that were checked.
        problems: messages about the damage.
        rewound: chains whose last windows are removed.
        manifests: manifests to remove, in an order that leaves intact chains wherever it is interrupted.
        folders: folders of the removed windows' snapshots, and of damaged snapshots that are not needed.
        orphans: files of kept windows that no manifest names.
        marks: folder and model of the rows that run again, and the index of the first such window.
    """

    windows: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    rewound: list[Chain] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    marks: list[tuple[Rows, str, int]] = field(default_factory=list)

    def apply(self, store: Store) -> None:
        """Removes the listed files and folders."""
        # Before the manifests: after a kill between, rows that are gone are damage, which a second repair finds.
        for kind, model, first in self.marks:
            take_back(store.workspace, kind, model, first)
        # Manifests first: without its manifest a window does not count, whatever is left of its files.
        for path in [*self.manifests, *self.orphans]:
            store.workspace.remove_file(path)
        for folder in self.folders:
            store.workspace.remove(folder)


class _Rewinding:
    """Reads all chains of a run, and collects the chains to rewind.

    Args:
        store: the run's folder.
        ties: links of every model of the run.
    """

    def __init__(self, store: Store, ties: Mapping[str, Ties]) -> None:
        self.store = store
        self.ties = ties
        self.rewound: list[Chain] = []
        self._chains = {(stage, name): read_chain(store.log, stage, name) for name in ties for stage in STAGES}

    def chain(self, stage: Stage, name: str) -> Chain:
        return self._chains[stage, name]

    def chains(self) -> Collection[Chain]:
        return self._chains.values()

    def supervision(self, name: str) -> Chain | None:
        """Returns the chain of supervision that a model's training writes, or None."""
        return self.chain("supervise", name) if self.ties[name].supervises else None

    def rewind(self, chain: Chain, before: int) -> None:
        """Rewinds a chain to before a window; a chain of training is rewound to an intact snapshot."""
        chain.go_back(before, to_a_snapshot=chain.stage == "train")
        if all(other is not chain for other in self.rewound):
            self.rewound.append(chain)

    def rewind_teachers(self) -> None:
        """Rewinds every model with a snapshot that will be read and does not exist, until there is none."""
        # A rewound model reads older snapshots of its teachers, so rewinding continues until nothing changes.
        changed = True
        while changed:
            changed = False
            for reader, teacher in self._readers():
                lost = self._first_lost(reader, teacher)
                if lost is not None:
                    self.rewind(self.chain("train", teacher), lost)
                    changed = True

    def _readers(self) -> Iterator[tuple[Chain, str]]:
        """Yields each chain that reads snapshots, with the model that the snapshots are of."""
        for name, tie in self.ties.items():
            for teacher in tie.parameter_teachers:
                if teacher in self.ties:
                    yield self.chain("train", name), teacher
            if tie.teaches and tie.delay:
                yield self.chain("supervise", name), name

    def _first_lost(self, reader: Chain, teacher: str) -> int | None:
        """Returns the index of the first lost snapshot of a model among those that a reader will still read."""
        published: list[Entry] = []
        for entry in self.chain("train", teacher).kept:
            if entry.snapshot is not SnapshotState.NONE and not entry.held:
                published.append(entry)
        if reader.kept and (last := reader.kept[-1].window) is not None:
            limit_us = last.end_us - microseconds(self.ties[teacher].delay)
            old = [entry for entry in published if entry.window is not None and entry.window.end_us <= limit_us]
            # The reader continues with the newest snapshot that is old enough, and reads the later ones after it.
            published = published[max(len(old) - 1, 0) :]
        for entry in published:
            if entry.snapshot is not SnapshotState.WHOLE:
                return entry.index
        return None


def find_repair(store: Store, ties: Mapping[str, Ties]) -> Repair:
    """Checks every committed file of a run, and lists the files to remove so that the run can continue.

    Args:
        store: the run's folder.
        ties: links of every model of the run.
    """
    rewinding, repair = _Rewinding(store, ties), Repair()
    for chain in rewinding.chains():
        repair.windows += len(chain.entries)
        repair.files += sum(len(entry.files) for entry in chain.entries)
        group = _group(chain, rewinding)
        problems = _missing_supervision(store, group)
        for member in group:
            for entry in member.entries:
                problems += [(entry.index, message) for message in entry.problems]
        repair.problems += [message for _, message in sorted(problems)]
        if problems:
            rewinding.rewind(chain, min(problems)[0])
    rewinding.rewind_teachers()
    # Models that read snapshots come before their teachers, so that an interrupted repair leaves no reader without.
    repair.rewound = rewinding.rewound[::-1]
    for chain in repair.rewound:
        _remove_last_windows(repair, _group(chain, rewinding))
    for chain in rewinding.chains():
        for entry in chain.kept:
            repair.orphans += find_orphans(store.workspace, entry.files)
            if entry.snapshot is SnapshotState.DAMAGED:
                repair.folders.append(_snapshot_folder(chain.model, entry.index))
            damage = store.late_labels.damage(chain.model, entry.index) if chain.stage == "train" else ""
            if damage:
                repair.problems.append(damage)
                # Without its count of late rows a window is compared with the log again, and its labels are read.
                repair.manifests += [labels_manifest(chain.model, entry.index), late_file(chain.model, entry.index)]
    return repair


def _group(chain: Chain, rewinding: _Rewinding) -> list[Chain]:
    """Returns the chains that are rewound together: a model's training, and the supervision that it writes.

    The group of such a supervision is empty, because it is handled with its training.
    """
    supervision = rewinding.supervision(chain.model)
    if supervision is None:
        return [chain]
    if chain is supervision:
        return []
    return [chain, supervision]


def _missing_supervision(store: Store, group: list[Chain]) -> list[tuple[int, str]]:
    """Returns a problem for each committed window of training whose supervision is not committed."""
    if len(group) < 2:
        return []
    train, supervision = group
    supervised = {entry.index for entry in supervision.entries}
    where = store.workspace.name(f"commits/supervise/{supervision.model}")
    missing = [entry for entry in train.entries if entry.index not in supervised]
    return [
        (entry.index, f"{where}: the manifest of window {entry.window or entry.index} is missing") for entry in missing
    ]


def _remove_last_windows(repair: Repair, group: list[Chain]) -> None:
    """Lists the manifests and folders of a group's last windows for removal, newest window first.

    In a window, the manifest of the training comes before that of the supervision, because committing is in the
    opposite order.
    """
    for chain in group:
        chain.last = group[0].last
        folder: Rows = "predictions" if chain.stage == "train" else "supervision"
        repair.marks.append((folder, chain.model, (chain.last if chain.last is not None else NONE) + 1))
    removed: list[tuple[int, int, Chain]] = []
    for position, chain in enumerate(group):
        removed += [(entry.index, -position, chain) for entry in chain.removed]
    for index, _, chain in sorted(removed, key=lambda item: item[:2], reverse=True):
        repair.manifests.append(f"commits/{chain.stage}/{chain.model}/{index:06d}.json")
        if chain.stage == "train":
            # The repeated window reads the late rows with all others, so they are not late any more.
            repair.manifests.append(late_file(chain.model, index))
            repair.folders.append(_snapshot_folder(chain.model, index))


def _snapshot_folder(model: str, window: int) -> str:
    return f"snapshots/{model}/{window:06d}"
