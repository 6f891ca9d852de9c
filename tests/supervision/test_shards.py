"""Snapshots in shards: any processes load the snapshots of any others, and a crafted snapshot is refused.

The processes are threads, each with its rank.
"""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import exfm
from exfm.interfaces.data_source import Window
from exfm.interfaces.local_shards import LocalShards, StateTensor, copy_state, local_boxes
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.storage.commits import Commit, CommitLog
from exfm.storage.shard_writer import plan_shards
from exfm.storage.snapshots import SnapshotRegistry, TensorFiles
from exfm.storage.workspace import Workspace
from tests.thread_group import in_threads

Range = tuple[tuple[int, ...], tuple[int, ...]]
ROWS, COLUMNS = 31, 6
WHOLE = {
    "table": torch.arange(ROWS * COLUMNS).float().view(ROWS, COLUMNS),
    "sums": torch.arange(ROWS).double(),
    "dense": torch.arange(12).float().view(3, 4),
    "steps": torch.tensor(7),
    "nothing": torch.zeros(0, 3),
}


def cut(rng: random.Random, shape: Sequence[int]) -> list[Range]:
    """Cuts a tensor into boxes: blocks of rows, some of them cut by columns as well."""
    ranges: list[Range] = []
    bounds = sorted({0, shape[0], *(rng.randrange(shape[0]) for _ in range(rng.randrange(4)))})
    for start, stop in pairwise(bounds):
        if len(shape) == 1:
            ranges.append(((start,), (stop - start,)))
            continue
        middle = rng.choice([0, 2, 5])
        if middle:
            ranges.append(((start, 0), (stop - start, middle)))
        ranges.append(((start, middle), (stop - start, shape[1] - middle)))
    return ranges


def box_of(whole: Tensor, range_: Range) -> Tensor:
    return whole[tuple(slice(offset, offset + size) for offset, size in zip(*range_, strict=True))]


def sharded(rng: random.Random, count: int) -> list[dict[str, StateTensor]]:
    """A state on each of so many ranks: some boxes are on two of them, and tensors that are not sharded on all."""
    states: list[dict[str, StateTensor]] = [dict(WHOLE) for _ in range(count)]
    for name in ("table", "sums"):
        boxes: list[dict[tuple[int, ...], Tensor]] = [{} for _ in range(count)]
        for range_ in cut(rng, WHOLE[name].shape):
            for rank in {rng.randrange(count), rng.randrange(count)}:
                boxes[rank][range_[0]] = box_of(WHOLE[name], range_).clone()
        for state, of_rank in zip(states, boxes, strict=True):
            state[name] = LocalShards(WHOLE[name].shape, WHOLE[name].dtype, of_rank)
    return states


def save_on(registry: SnapshotRegistry, states: Sequence[dict[str, StateTensor]]) -> None:
    """Commits a snapshot of the states of several ranks."""
    window = Window(0, 0, 100)

    def write(group: ProcessGroup) -> None:
        shards = plan_shards(states[group.rank], group)
        files = registry.write("vm", window, shards, plan_shards({}, group), group)
        if group.is_rank_zero:
            registry.log.add("train", "vm", Commit(window, {"learned": []}, files))

    in_threads(write, len(states))


class Doubled:
    """Twice the rows: the second half of the table repeats the first, and that of the sums is filled."""

    def repeats(self, name: str, before: int, rows: int) -> int:
        assert rows == 2 * before
        return {"table": 2, "sums": 1}.get(name, 0)

    def fill(self, name: str, before: int, state: StateTensor) -> None:
        for offsets, box in local_boxes(state).items() if name == "sums" else ():
            box[max(0, before - offsets[0]) :] = -1.0


@pytest.mark.parametrize("seed", range(12))
def test_any_processes_load_what_any_others_have_saved(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    registry = SnapshotRegistry(Workspace(str(tmp_path)), CommitLog(Workspace(str(tmp_path))))
    save_on(registry, sharded(rng, rng.randint(1, 4)))
    files = registry.get("vm", 0).weights
    stored = [load_file(tmp_path / file.path) for file in files.files]
    elements = sum(tensor.numel() for tensors in stored for tensor in tensors.values())
    assert elements == sum(map(Tensor.numel, WHOLE.values())), "each element is written once"
    whole = registry.load_whole(files)
    assert whole.keys() == WHOLE.keys()
    assert all(torch.equal(whole[name], WHOLE[name]) and whole[name].dtype == WHOLE[name].dtype for name in WHOLE)
    for factor, growth in ((1, None), (2, Doubled())):
        expected = {"table": WHOLE["table"].repeat(factor, 1)}
        expected["sums"] = torch.cat([WHOLE["sums"], torch.full((ROWS * (factor - 1),), -1.0).double()])
        for name, tensor in expected.items():
            ranges = cut(rng, tensor.shape)
            boxes = {range_[0]: torch.zeros(range_[1], dtype=tensor.dtype) for range_ in ranges}
            into = LocalShards(tensor.shape, tensor.dtype, boxes)
            read = registry.load(files, name.__eq__, {name: into}.get, growth)
            assert read == {name: into}
            assert all(torch.equal(boxes[range_[0]], box_of(tensor, range_)) for range_ in ranges), (name, factor)
            other = LocalShards(tensor.shape, tensor.dtype, {range_[0]: torch.zeros(range_[1]) for range_ in ranges})
            copy_state(name, other, tensor)
            assert all(torch.equal(other.boxes[range_[0]], box_of(tensor, range_).float()) for range_ in ranges)


def test_a_state_that_is_not_of_tensors_or_not_complete_is_refused() -> None:
    with pytest.raises(ValueError, match="rates: a list cannot be saved"):
        plan_shards({"rates": [1.0]}, SINGLE_PROCESS)  # type: ignore[dict-item]
    half = LocalShards((4, 2), torch.float32, {(0, 0): torch.zeros(2, 2)})
    with pytest.raises(ValueError, match="half: its boxes have 4 of its 8 elements: boxes are missing"):
        plan_shards({"half": half}, SINGLE_PROCESS)


Change = Callable[[dict[str, Any]], object]
CRAFTED: dict[str, tuple[Change, str]] = {
    "above": (lambda t: t["boxes"][0].update(file="../../x.safetensors"), r"names the file '\.\./\.\./x"),
    "absolute": (lambda t: t["boxes"][0].update(file="/etc/passwd"), "names the file '/etc/passwd', which is not of"),
    "index": (lambda t: t["boxes"][0].update(file=7), "names the file 7"),
    "absurd": (lambda t: _resize(t, 1 << 50), r"a box of \[\d+, 6\] elements does not fit into model-"),
    "overlap": (lambda t: t["boxes"].append(t["boxes"][0]), "its boxes overlap"),
    "shifted": (lambda t: t["boxes"][1].update(offsets=[0, 0], sizes=[16, 6]), "its boxes overlap"),
    "missing": (lambda t: t["boxes"].pop(), r"its boxes have 90 of its 186 elements: boxes are missing"),
    "none": (lambda t: t.update(boxes=[]), "boxes are missing"),
    "outside": (
        lambda t: t["boxes"][1].update(offsets=[16, 0]),
        r"at \[16, 0\] of \[16, 6\] lies outside of \[31, 6\]",
    ),
    "dimensions": (lambda t: t["boxes"][0].update(offsets=[0]), "has other dimensions"),
    "negative": (lambda t: t["boxes"][0].update(offsets=[-1, 0]), r"\[-1, 0\] is no shape"),
    "bool": (lambda t: t.update(shape=[True, 6]), "is no shape"),
    "fraction": (lambda t: t.update(shape=[31.0, 6]), "is no shape"),
    "deep": (lambda t: t.update(shape=[1] * 99), "is no shape"),
    "dtype": (lambda t: t.update(dtype="I32"), "says that the file has this tensor, of torch.int32"),
    "object": (lambda t: t.update(dtype="O"), "its dtype is 'O'; allowed: F64"),
    "key": (lambda t: t.pop("shape"), "not as an index describes one"),
    "turned": (lambda t: [box.update(sizes=[6, 16][::-1]) for box in t["boxes"][:1]], "its boxes overlap"),
}


def _resize(tensor: dict[str, Any], rows: int) -> None:
    tensor["shape"] = [rows, COLUMNS]
    tensor["boxes"][1]["sizes"] = [rows - 15, COLUMNS]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> SnapshotRegistry:
    """A snapshot whose table is in two files, rows 0 to 14 and 15 to 30."""
    workspace = Workspace(str(tmp_path_factory.mktemp("two")))
    registry = SnapshotRegistry(workspace, CommitLog(workspace))
    halves: list[dict[str, StateTensor]] = []
    for start, stop in ((0, 15), (15, ROWS)):
        table = LocalShards((ROWS, COLUMNS), torch.float32, {(start, 0): WHOLE["table"][start:stop]})
        halves.append({"table": table})
    save_on(registry, halves)
    return registry


def with_index(registry: SnapshotRegistry, content: Any) -> TensorFiles:
    """The snapshot with another index, as if it had been committed with it."""
    files = registry.get("vm", 0).weights
    return replace(files, index=registry.workspace.write_json("snapshots/vm/000000/crafted-{digest}.json", content))


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_index_is_refused(two_ranks: SnapshotRegistry, name: str) -> None:
    change, message = CRAFTED[name]
    content = json.loads(two_ranks.workspace.read_checked(two_ranks.get("vm", 0).weights.index))
    assert math.prod(content["tensors"]["model"]["table"]["shape"]) == ROWS * COLUMNS
    crafted = copy.deepcopy(content)
    change(crafted["tensors"]["model"]["table"])
    with pytest.raises(exfm.RunError, match=message):
        two_ranks.load_whole(with_index(two_ranks, crafted))
    assert torch.equal(two_ranks.load_whole(with_index(two_ranks, content))["table"], WHOLE["table"])


def test_a_crafted_file_is_refused(two_ranks: SnapshotRegistry) -> None:
    contents: list[Any] = [[], {"tensors": {"model": []}}, {"tensors": {}}]
    for content in contents:
        with pytest.raises(exfm.RunError, match="index"):
            two_ranks.load_whole(with_index(two_ranks, content))
    data = bytes(save({"table": WHOLE["table"]}))
    for before, after in ((b"[0,744]", b"[8,752]"), (b"[31,6]", b"[31,7]"), (b'"F32"', b'"F33"')):
        assert before in data
        record = two_ranks.workspace.write("snapshots/vm/000000/model.safetensors", data.replace(before, after))
        files = TensorFiles("model", (record,), two_ranks.workspace.write_json("snapshots/vm/000000/old.json", {}))
        with pytest.raises(exfm.RunError, match="tensor 'table': not as safetensors describes one"):
            two_ranks.load_whole(files)
