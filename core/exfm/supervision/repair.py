"""Takes a damaged run back to where it is whole: the next run does the windows since again, with equal files.

A model goes back to its newest snapshot before the first damaged window. Models whose snapshots it then reads go back
too, where those are not there any more.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from exfm.interfaces.duration import microseconds
from exfm.storage.chains import Chain, Snapshot, read_chain
from exfm.storage.commits import STAGES, Stage
from exfm.storage.late_log import late_file
from exfm.storage.orphans import orphans
from exfm.supervision.store import Store


@dataclass(frozen=True)
class Ties:
    """What of a model's config decides what goes back with it.

    Attributes:
        delay: of its supervision; with one, a labeller writes it and its training does not.
        teaches: whether other models learn from it.
        lenders: the models whose snapshots it reads parts of.
    """

    delay: timedelta = timedelta(0)
    teaches: bool = False
    lenders: Collection[str] = ()

    @property
    def supervises(self) -> bool:
        """Whether its training writes its supervision."""
        return self.teaches and not self.delay


@dataclass
class Repair:
    """What is damaged, and what has to go.

    Attributes:
        windows, files: how many were looked at.
        problems: in words.
        back: the chains whose last windows go.
        manifests: those that go, in an order that leaves a sound beginning wherever it is interrupted.
        folders: of snapshots of these windows, and of damaged ones that nobody needs.
        orphans: files of windows that stay which no manifest names.
    """

    windows: int = 0
    files: int = 0
    problems: list[str] = field(default_factory=list)
    back: list[Chain] = field(default_factory=list)
    manifests: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)

    def carry_out(self, store: Store) -> None:
        """Removes what has to go."""
        for path in [*self.manifests, *self.orphans]:
            store.workspace.remove_file(path)
        for folder in self.folders:
            store.workspace.remove(folder)


class _Run:
    """All chains of a run, and which of them go back.

    Args:
        ties: of every model of the run.
    """

    def __init__(self, store: Store, ties: Mapping[str, Ties]) -> None:
        self.store = store
        self.ties = ties
        self.back: list[Chain] = []
        self._chains = {(stage, name): read_chain(store.log, stage, name) for name in ties for stage in STAGES}

    def chain(self, stage: Stage, name: str) -> Chain:
        return self._chains[stage, name]

    def chains(self) -> Collection[Chain]:
        return self._chains.values()

    def supervision(self, name: str) -> Chain | None:
        """The supervision that a model's training writes."""
        return self.chain("supervise", name) if self.ties[name].supervises else None

    def go_back(self, chain: Chain, before: int) -> None:
        """Takes a chain back to before a window: of a model's training, to where a snapshot is whole."""
        chain.go_back(before, to_a_snapshot=chain.stage == "train")
        if all(other is not chain for other in self.back):
            self.back.append(chain)

    def take_lenders_along(self) -> None:
        """Takes back every model whose snapshots are read from now on and are not all there."""
        moved = True
        while moved:
            moved = False
            for name, tie in self.ties.items():
                readers = [(self.chain("train", name), lender) for lender in tie.lenders if lender in self.ties]
                if tie.teaches and tie.delay:
                    readers.append((self.chain("supervise", name), name))
                for reader, lender in readers:
                    lost = self._first_lost(reader, lender)
                    if lost is not None:
                        self.go_back(self.chain("train", lender), lost)
                        moved = True

    def _first_lost(self, reader: Chain, lender: str) -> int | None:
        """The first of a model's snapshots that is not there, from the one on with which a reader goes on."""
        published = [one for one in self.chain("train", lender).kept if one.snapshot is not Snapshot.NONE]
        if reader.kept and (last := reader.kept[-1].window) is not None:
            limit_us = last.end_us - microseconds(self.ties[lender].delay)
            old = [one for one in published if one.window is not None and one.window.end_us <= limit_us]
            published = published[max(len(old) - 1, 0) :]
        return next((one.index for one in published if one.snapshot is not Snapshot.WHOLE), None)


def find_repair(store: Store, ties: Mapping[str, Ties]) -> Repair:
    """Checks every committed file of a run, and finds what has to go for it to go on.

    Args:
        ties: of every model of the run.
    """
    run, repair = _Run(store, ties), Repair()
    for chain in run.chains():
        repair.windows += len(chain.entries)
        repair.files += sum(len(one.files) for one in chain.entries)
        together = _together(chain, run)
        problems = [(one.index, words) for member in together for one in member.entries for words in one.problems]
        problems += _lacking(store, together)
        repair.problems += [words for _, words in sorted(problems)]
        if problems:
            run.go_back(chain, min(problems)[0])
    run.take_lenders_along()
    repair.back = run.back[::-1]
    for chain in repair.back:
        _remove(repair, _together(chain, run))
    for chain in run.chains():
        for one in chain.kept:
            repair.orphans += orphans(store.workspace, one.files)
            if one.snapshot is Snapshot.DAMAGED:
                repair.folders.append(_folder(chain.model, one.index))
    return repair


def _together(chain: Chain, run: _Run) -> list[Chain]:
    """The chains that go back as that one does: a model's training and the supervision that it writes."""
    own = run.supervision(chain.model)
    if own is None:
        return [chain]
    return [] if chain is own else [chain, own]


def _lacking(store: Store, together: list[Chain]) -> list[tuple[int, str]]:
    """The windows of a model's training whose supervision was to be committed before, and is not."""
    if len(together) < 2:
        return []
    train, own = together
    supervised = {one.index for one in own.entries}
    where = store.workspace.name(f"commits/supervise/{own.model}")
    lacking = [one for one in train.entries if one.index not in supervised]
    return [(one.index, f"{where}: the manifest of window {one.window or one.index} is missing") for one in lacking]


def _remove(repair: Repair, together: list[Chain]) -> None:
    """Has the last windows of chains removed, from the newest back; a training's before what it has written first."""
    for chain in together:
        chain.last = together[0].last
    removed = [(one.index, -place, chain) for place, chain in enumerate(together) for one in chain.removed]
    for index, _, chain in sorted(removed, key=lambda item: item[:2], reverse=True):
        repair.manifests.append(f"commits/{chain.stage}/{chain.model}/{index:06d}.json")
        if chain.stage == "train":
            repair.manifests.append(late_file(chain.model, index))  # rows that came late are read with the rest
            repair.folders.append(_folder(chain.model, index))


def _folder(model: str, window: int) -> str:
    return f"snapshots/{model}/{window:06d}"
