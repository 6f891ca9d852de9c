"""Snapshots that are deltas: whatever happens to tables, every kept version is put together exactly."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import exfm
from exfm.interfaces.data_source import Window
from exfm.interfaces.local_shards import LocalShards, StateTensor, local_boxes
from exfm.storage import deltas
from exfm.storage.commits import Commit
from exfm.storage.delta import Delta
from exfm.storage.deltas import DeltaPlan, TableState
from exfm.storage.snapshot_links import links
from exfm.supervision.store import Store
from tests.supervision.snapshots import write_snapshot

ROWS, WIDTH = 60, 3
WEIGHT, SUM = "bags.table_user.weight", "table.bags.table_user.weight.table_user.weight.sum"


class Model:
    """A table, the sums of its optimizer and a dense layer, whose changes are reported as a plan reports them."""

    def __init__(self, store: Store, full_every: int) -> None:
        self.store, self.plan = store, DeltaPlan(full_every)
        self.tensors = {WEIGHT: torch.rand(ROWS, WIDTH), "dense": torch.rand(4)}
        self.training = {SUM: torch.zeros(ROWS)}
        self.changed: dict[str, Tensor] = {}
        self.is_tracked = True
        self.versions: list[dict[str, Tensor]] = []

    def update(self, rows: list[int]) -> None:
        index = torch.tensor(sorted(set(rows)), dtype=torch.int64)
        self.tensors[WEIGHT][index] += torch.rand(len(index), WIDTH)
        self.training[SUM][index] += torch.rand(len(index))
        self.tensors["dense"] += 1
        before = self.changed.get("table_user", torch.zeros(0, dtype=torch.int64))
        self.changed["table_user"] = torch.unique(torch.cat([before, index]))

    def commit(self) -> Delta | None:
        version = len(self.versions)
        states = [
            TableState(self.tensors, {WEIGHT: "table_user"}),
            TableState(self.training, {SUM: "table_user"}),
        ]
        saved, delta = self.plan.next(version, states, self.changed if self.is_tracked else {})
        self.changed, self.is_tracked = {"table_user": torch.zeros(0, dtype=torch.int64)}, True
        window = Window(version, version * 100, version * 100 + 100)
        files = write_snapshot(self.store.snapshots, window, *saved)  # type: ignore[arg-type]
        counters: dict[str, Any] = {"learned": []} | ({} if delta is None else delta.as_counters())
        self.store.log.add("train", "vm", Commit(window, counters, files, version - 1))
        self.versions.append({name: value.clone() for name, value in (self.tensors | self.training).items()})
        self.store.snapshots.retire("vm", window.end_us)
        return delta

    def grow(self) -> None:
        self.tensors[WEIGHT] = torch.cat([self.tensors[WEIGHT], torch.rand(ROWS, WIDTH)])
        self.training[SUM] = torch.cat([self.training[SUM], torch.zeros(ROWS)])


@pytest.fixture(autouse=True)
def all_tables_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deltas, "SMALL_BYTES", 0)


def read(store: Store, version: int) -> dict[str, Tensor]:
    snapshot = store.snapshots.get("vm", version)
    return store.snapshots.load_whole(snapshot.weights) | store.snapshots.load_whole(snapshot.training)


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


_STEP = st.one_of(
    st.lists(st.integers(0, ROWS - 1), max_size=12), st.sampled_from(["unknown", "grow", "restart", "commit"])
)


@settings(max_examples=15, deadline=None)
@given(st.lists(_STEP, max_size=12), st.integers(1, 4))
def test_every_stored_version_is_put_together_exactly(steps: list[Any], full_every: int) -> None:
    with TemporaryDirectory() as folder:
        model = Model(Store(folder), full_every)
        for step in steps:
            if step == "unknown":  # somebody writes to a table, and the plan says that it does not know where
                model.tensors[WEIGHT].mul_(2)
                model.is_tracked = False
            elif step == "grow":
                model.grow()
            elif step == "restart" and model.versions:
                # As a job that goes on: the rows that it had not committed are lost with it.
                newest, snapshot = model.versions[-1], Store(folder).snapshots.get("vm", len(model.versions) - 1)
                model.tensors = {name: newest[name].clone() for name in (WEIGHT, "dense")}
                model.training = {SUM: newest[SUM].clone()}
                model.changed, model.is_tracked = {"table_user": torch.zeros(0, dtype=torch.int64)}, True
                model.plan = DeltaPlan(full_every)
                shapes = {name: tensor.shape for name, tensor in newest.items()}
                model.plan.go_on_from(snapshot.version, snapshot.delta, shapes)
            elif isinstance(step, list):
                model.update(step)
            if isinstance(step, list) or step == "commit":
                model.commit()
        store = Store(folder)
        for version in store.snapshots.versions("vm"):
            assert same(read(store, version), model.versions[version])
            assert len(list(links(store.log, "vm", version))) <= full_every


def test_a_delta_is_small_and_its_links_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exfm.storage.snapshots.READING_S", 0.0)
    model = Model(Store(str(tmp_path)), 4)
    kinds: list[Delta | None] = []
    for number in range(11):
        model.update([number, number + 1])
        kinds.append(model.commit())
    assert [None if kind is None else kind.after for kind in kinds] == [None, 0, 1, 2, None, 4, 5, 6, None, 8, 9]
    # 9 and 10 are the newest and need 8; where 8 is damaged, 7 stands in, which needs 4 to 6.
    assert model.store.snapshots.versions("vm") == list(range(4, 11))
    model.store.snapshots.aliases.promote("vm", "production", 5)
    for number in range(6):
        model.update([number])
        model.commit()
    # The newest, 16, is full: 15 stands in, on 12 to 14. The alias needs 4 and 5.
    assert model.store.snapshots.versions("vm") == [4, 5, 12, 13, 14, 15, 16]
    for version in (4, 5, 13, 16):
        assert same(read(model.store, version), model.versions[version])


def test_half_of_the_rows_is_enough_for_a_full_snapshot(tmp_path: Path) -> None:
    model = Model(Store(str(tmp_path)), 100)
    kinds = []
    for _ in range(5):
        model.update(list(range(14)))
        kinds.append(model.commit())
    # 14 rows of 60, and again: the third time they are more than half.
    assert [kind and kind.rows for kind in kinds] == [None, 14, 28, None, 14]


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_damaged_link_is_an_error(damaged: int, tmp_path: Path) -> None:
    model = Model(Store(str(tmp_path)), 4)
    for number in range(4):
        model.update([number])
        model.commit()
    (file,) = (tmp_path / f"snapshots/vm/{damaged:06d}").glob("model-*")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    for version in range(4):
        if version < damaged:
            assert same(read(model.store, version), model.versions[version])
        else:
            with pytest.raises(exfm.RunError, match=f"{damaged:06d}/model-.*corrupt"):
                read(model.store, version)


def test_rows_outside_of_a_table_are_refused(tmp_path: Path) -> None:
    model = Model(Store(str(tmp_path)), 4)
    model.commit()
    model.update([ROWS - 1])
    model.changed["table_user"] = torch.tensor([ROWS - 1])
    model.commit()
    snapshot = model.store.snapshots.get("vm", 1)
    window = Window(2, 200, 300)
    state = {f"{WEIGHT}#rows": torch.tensor([ROWS]), f"{WEIGHT}#values": torch.zeros(1, WIDTH)}
    files = write_snapshot(model.store.snapshots, window, state, {"m": torch.zeros(1)})
    counters = {"learned": [], "delta": asdict(Delta(snapshot.version, 2, 1))}
    model.store.log.add("train", "vm", Commit(window, counters, files, 1))
    with pytest.raises(exfm.RunError, match="no rows of it"):
        model.store.snapshots.load_whole(model.store.snapshots.get("vm", 2).weights)


def test_a_process_reads_its_boxes_of_a_delta(tmp_path: Path) -> None:
    model = Model(Store(str(tmp_path)), 4)
    for number in range(3):
        model.update([number, 29, 30, 31, 59])
        model.commit()
    boxes: dict[tuple[int, ...], Tensor] = {(30, 0): torch.zeros(30, 2), (0, 2): torch.zeros(ROWS, 1)}
    mine: StateTensor = LocalShards((ROWS, WIDTH), torch.float32, boxes)
    snapshot = model.store.snapshots.get("vm", 2)
    model.store.snapshots.load(snapshot.weights, {WEIGHT}.__contains__, lambda name: mine)
    assert torch.equal(boxes[30, 0], model.versions[2][WEIGHT][30:, :2])
    assert torch.equal(boxes[0, 2], model.versions[2][WEIGHT][:, 2:])


@pytest.mark.parametrize("rows", [[], [0], [29, 30], [3, 30, 31, 59], [40, 41]])
def test_processes_save_their_boxes_of_the_changed_rows(rows: list[int]) -> None:
    """Two have halves of the rows of some columns, the second a column of all rows too."""
    index, table = torch.tensor(rows, dtype=torch.int64), torch.randn(ROWS, WIDTH)
    processes: list[dict[tuple[int, ...], Tensor]] = [
        {(0, 0): table[:30, :2]},
        {(30, 0): table[30:, :2], (0, 2): table[:, 2:]},
    ]
    values = torch.full((len(rows), WIDTH), torch.nan)
    for boxes in processes:
        plan = DeltaPlan(4)
        state = TableState({WEIGHT: LocalShards((ROWS, WIDTH), torch.float32, boxes)}, {WEIGHT: "table_user"})
        plan.next(0, [state], {})
        (saved,), delta = plan.next(1, [state], {"table_user": index})
        assert delta is not None
        assert saved.keys() == {f"{WEIGHT}#rows", f"{WEIGHT}#values"}
        for (first, column), box in local_boxes(saved[f"{WEIGHT}#values"]).items():
            values[first : first + box.shape[0], column : column + box.shape[1]] = box
    assert torch.equal(values, table[index])
