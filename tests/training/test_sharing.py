"""Parts of a teacher in its students: their snapshot, their training, and the agreement of all runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import exfm
from exfm.modeling.parts import grouped
from exfm.scheduling.identity import open_run
from exfm.storage import snapshots
from exfm.storage.commits import CommitLog
from exfm.storage.snapshots import SnapshotRegistry, TensorFiles
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.training.logs import (
    DAY_US,
    START_US,
    differences,
    experiment_dict,
    load,
    make_log,
    predictions,
    train,
    write_log,
)

PARTS = {
    "table/user": "added",
    "table/item": "frozen",
    "sequence_encoder/history": "copied",
    "dense_tokens": "frozen",
}


def config(folder: Path, name: str, parts: Mapping[str, str] = PARTS, log: Any = None, **fields: Any) -> dict[str, Any]:
    """A VM of all features that takes parts of the FM over."""
    path = write_log(folder / f"log-{name}", make_log() if log is None else log)
    settings = experiment_dict(path, str(folder / name))
    del settings["models"]["vm"]["features"]
    settings["models"]["vm"]["sequence_encoder"] = {"name": "din"}
    settings["models"]["vm"]["transfer"] = [
        {"name": "parameter_sharing", "teacher": "fm", "parts": dict(parts), **fields}
    ]
    return settings


def snapshot(run_dir: Path, model: str, version: int, file: str = "model") -> dict[str, Tensor]:
    (path,) = (run_dir / "snapshots" / model / f"{version:06d}").glob(f"{file}-*.safetensors")
    return load_file(path)


def parts_of(run_dir: Path, model: str, version: int) -> dict[str, dict[str, Tensor]]:
    return grouped(snapshot(run_dir, model, version))


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def versions(run_dir: Path, model: str) -> list[int]:
    return sorted(int(path.name) for path in (run_dir / "snapshots" / model).iterdir())


def loop_of(experiment: exfm.Experiment, model: str, on_progress: Any = lambda _: None) -> StreamLoop:
    store = Store(experiment.run_dir)
    open_run(experiment, store)
    names = [arm.name for arm in experiment.arms if model in (arm.name, arm.base)]
    return StreamLoop(experiment, store, experiment.config.parallel.build(), on_progress, names, [])


def interrupt_at(chunk: int) -> Any:
    count = 0

    def stop(_: object) -> None:
        nonlocal count
        count += 1
        if count == chunk:
            raise InterruptedError

    return stop


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The results of an undisturbed run, and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "READING_S", 0.0)
        return exfm.run(load(folder, config(folder, "run"))), folder / "run"


def test_the_parts_are_those_of_the_window_before(whole: tuple[dict[str, Any], Path]) -> None:
    run_dir = whole[1]
    student, teacher = parts_of(run_dir, "vm", 5), parts_of(run_dir, "fm", 4)
    assert same(student["table/item"], teacher["table/item"])
    assert same(student["dense_tokens"], teacher["dense_tokens"])
    assert not same(student["sequence_encoder/history"], teacher["sequence_encoder/history"])
    assert not same(teacher["table/item"], parts_of(run_dir, "fm", 5)["table/item"])


def test_what_is_added_is_folded_into_the_published_table(whole: tuple[dict[str, Any], Path]) -> None:
    run_dir = whole[1]
    training = snapshot(run_dir, "vm", 5, "training")
    offsets = grouped({key.removeprefix("unfolded."): value for key, value in training.items() if "unfolded." in key})
    map_DE = training["transfer.0.maps.part_table/user.weight"]
    teacher_RE = parts_of(run_dir, "fm", 4)["table/user"]["weight"]
    expected_RD = offsets["table/user"]["weight"] + torch.stack([map_DE @ row_E for row_E in teacher_RE])
    torch.testing.assert_close(parts_of(run_dir, "vm", 5)["table/user"]["weight"], expected_RD)
    assert not torch.equal(map_DE, torch.eye(8)), "the map has not learned"
    kept = {key: value for key, value in training.items() if key.startswith(("transfer.", "vectors."))}
    assert not any(value.shape == teacher_RE.shape for value in kept.values())


def test_what_is_served_is_as_large_as_the_control(whole: tuple[dict[str, Any], Path]) -> None:
    shapes = [
        {name: tensor.shape for name, tensor in snapshot(whole[1], name, 5).items()} for name in ("vm", "vm.control")
    ]
    assert shapes[0] == shapes[1]
    models = whole[0]["models"]
    assert models["vm"]["flops_per_example"] == models["vm.control"]["flops_per_example"]
    assert models["vm"]["parameters"] == models["vm.control"]["parameters"]


def test_an_interrupted_run_ends_alike(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    experiment = load(tmp_path, config(tmp_path, "run"))
    for chunk in (5, 4):  # in the second window, and in the third
        with pytest.raises(InterruptedError):
            exfm.run(experiment, interrupt_at(chunk))
    assert not differences(exfm.run(experiment), whole[0])
    for version in (4, 5):
        assert same(snapshot(tmp_path / "run", "vm", version), snapshot(whole[1], "vm", version))


def test_separate_jobs_end_alike_and_find_the_snapshots_they_need(
    whole: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    experiment, run_dir = load(tmp_path, config(tmp_path, "run")), tmp_path / "run"
    assert loop_of(experiment, "fm").advance() == 6
    assert versions(run_dir, "fm") == [0, 1, 2, 3, 4, 5]  # the student has not begun
    with pytest.raises(InterruptedError):
        loop_of(experiment, "vm", interrupt_at(10)).advance()
    newest = versions(run_dir, "vm")[-1]
    (lost,) = (run_dir / "snapshots" / "vm" / f"{newest:06d}").glob("training-*")
    lost.unlink()
    done = loop_of(experiment, "vm").advance()
    assert done == 6 - newest, "the window whose snapshot was lost is done again"
    assert not differences(exfm.run(experiment), whole[0])
    assert same(snapshot(run_dir, "vm", 5), snapshot(whole[1], "vm", 5))


def test_snapshots_that_no_student_needs_are_removed(whole: tuple[dict[str, Any], Path]) -> None:
    # Once all models have committed the last window, the student can go back to before it, which needs the fourth.
    assert versions(whole[1], "fm") == [4, 5]
    assert versions(whole[1], "vm") == [4, 5]


def test_the_delay_holds_for_parts_too(tmp_path: Path) -> None:
    settings = config(tmp_path, "run")
    settings["models"]["fm"]["supervision"] = {"delay": "1d"}
    train(load(tmp_path, settings))
    student, teacher = parts_of(tmp_path / "run", "vm", 5), parts_of(tmp_path / "run", "fm", 3)
    assert same(student["table/item"], teacher["table/item"])


def test_a_students_prediction_depends_on_no_later_label(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """With other labels from the fourth day on, the first prediction of the fourth day is the last that stays."""
    log = make_log()
    late = log.column("event_time").cast("int64").to_numpy() >= START_US + 3 * DAY_US
    flipped = [int(click) ^ int(other) for click, other in zip(log.column("click").to_pylist(), late, strict=True)]
    log = log.set_column(log.column_names.index("click"), "click", [flipped])
    train(load(tmp_path, config(tmp_path, "run", log=log)))
    for window in range(5):
        actual, expected = (
            predictions(str(run_dir), "vm")[window].column("prediction_click").to_pylist()
            for run_dir in (tmp_path / "run", whole[1])
        )
        assert actual[0] == expected[0] or window > 3
        assert (actual == expected) == (window < 3)


def test_fine_tuned_parts_start_from_the_first_snapshot_and_go_their_own_way(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", {"table/item": "fine_tuned"})
    settings["models"]["vm"]["optimizer"] = {"dense": {"lr": 1e-12}, "tables": {"name": "sgd", "lr": 1e-12}}
    experiment = load(tmp_path, settings)
    assert loop_of(experiment, "fm").advance() == 6
    first = parts_of(tmp_path / "run", "fm", 0)["table/item"]["weight"]
    train(experiment)
    torch.testing.assert_close(parts_of(tmp_path / "run", "vm", 5)["table/item"]["weight"], first)


def test_projected_rows_are_the_teachers_alone(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", {"table/item": "projected", "table/user": "frozen"}, slice=True)
    settings["models"]["vm"]["embedding_dim"] = 4
    train(load(tmp_path, settings))
    teacher, student = parts_of(tmp_path / "run", "fm", 4), parts_of(tmp_path / "run", "vm", 5)
    map_DE = snapshot(tmp_path / "run", "vm", 5, "training")["transfer.0.maps.part_table/item.weight"]
    torch.testing.assert_close(student["table/item"]["weight"], teacher["table/item"]["weight"] @ map_DE.T)
    assert torch.equal(student["table/user"]["weight"], teacher["table/user"]["weight"][:, :4])


def test_a_corrupt_snapshot_is_named_and_the_one_before_it_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    experiment, run_dir = load(tmp_path, config(tmp_path, "run")), tmp_path / "run"
    loop_of(experiment, "fm").advance()
    before = parts_of(run_dir, "fm", 3)
    files = {version: next((run_dir / f"snapshots/fm/{version:06d}").glob("model-*")) for version in range(5)}
    files[4].write_bytes(files[4].read_bytes()[:-1] + b"?")
    loop_of(experiment, "vm").advance()
    assert f"{files[4].name}: corrupt" in caplog.text
    assert same(parts_of(run_dir, "vm", 5)["table/item"], before["table/item"])


def test_without_any_snapshot_that_can_be_read_there_is_an_error(tmp_path: Path) -> None:
    experiment = load(tmp_path, config(tmp_path, "run"))
    loop_of(experiment, "fm").advance()
    next((tmp_path / "run/snapshots/fm/000000").glob("model-*")).unlink()
    with pytest.raises(exfm.RunError, match=r"snapshots/fm/000000/model-\w+\.safetensors: a committed file is missing"):
        loop_of(experiment, "vm").advance()


@pytest.mark.parametrize("url", ["file", "memory"])
def test_only_what_is_wanted_of_a_file_is_read(tmp_path: Path, url: str) -> None:
    workspace = Workspace(str(tmp_path / "store") if url == "file" else f"memory://{tmp_path}")
    tensors = {
        "a": torch.randn(3, 5), "b": torch.arange(7), "none": torch.zeros(0, 4), "flag": torch.tensor(True),
        "c": torch.randn(2, dtype=torch.float64), "half": torch.randn(9).half(),
    }  # fmt: skip
    registry = SnapshotRegistry(workspace, CommitLog(workspace))
    # As before there were shards: a file of another writer, and a snapshot without an index of its tensors.
    record = workspace.write("x.safetensors", save(tensors, metadata={"a": "b"}))
    files = TensorFiles("model", (record,), workspace.write("snapshot.json", b'{"model": "vm"}'))
    for chosen in ({"a"}, {"half", "flag", "none"}, set(), {*tensors}, {"unknown", "c", "b"}):
        actual = registry.load_whole(files, chosen.__contains__)
        assert actual.keys() == chosen & tensors.keys()
        assert all(value.dtype == tensors[name].dtype for name, value in actual.items())
        assert same(actual, {name: tensors[name] for name in actual})


@pytest.mark.parametrize(
    ("parts", "changes", "message"),
    [
        ({"table/itm": "added"}, {}, r"teacher 'fm' has no part 'table/itm'\. Did you mean 'table/item'\?"),
        ({"table/item": "added"}, {"features": ["user"]}, r"the student has no part 'table/item'\. Did you mean"),
        ({"table/item": "frozen"}, {"embedding_dim": 4}, r"table/item: .* width 8, the student's 4: .*slice: true"),
        ({"table/item": "copied"}, {"embedding_dim": 12, "slice": True}, r"width 8, the student's 12: .*say the mode"),
        ({"sequence_encoder/history": "added"}, {}, r"parts\.sequence_encoder/history: added is for tables"),
        ({"sequence_encoder/history": "frozen"}, {"embedding_dim": 4}, r"the teacher's has \S+ \(.*they must be equal"),
        ({"table/item": "borrowed"}, {}, r"parts\.table/item: 'borrowed' is not allowed.*fine_tuned, frozen"),
        ({}, {}, r"parts.*at least 1"),
    ],
)  # fmt: skip
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, parts: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    changes = dict(changes)
    settings = config(tmp_path, "run", parts, slice=changes.pop("slice", False))
    settings["models"]["vm"] |= changes
    with pytest.raises(exfm.ConfigError, match=message):
        exfm.run(load(tmp_path, settings))


def test_projections_of_other_features_are_refused(tmp_path: Path) -> None:
    log = make_log()
    log = log.append_column("cost", log.column("price"))
    settings = config(tmp_path, "run", {"dense_tokens": "copied"}, log=log)
    settings["stream"]["source"]["features"].append({"name": "cost", "kind": "dense"})
    settings["models"]["fm"]["features"] = ["user", "item", "price", "history"]
    settings["models"]["vm"]["features"] = ["user", "item", "cost", "history"]
    with pytest.raises(exfm.ConfigError, match=r"dense_tokens: the teacher's reads price, the student's cost"):
        exfm.run(load(tmp_path, settings))


def test_a_teacher_from_elsewhere_has_no_parts(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", {"table/item": "added"})
    log = make_log()
    scores = log.select(["example_id"]).append_column("score", log.column("price").cast("float32"))
    write_log(tmp_path / "scores", scores)
    settings["teachers"] = {
        "vendor": {"path": str(tmp_path / "scores"), "predictions": {"click": {"column": "score", "kind": "logit"}}}
    }
    settings["models"]["vm"]["transfer"][0]["teacher"] = "vendor"
    with pytest.raises(exfm.ConfigError, match=r"transfer\.0: teacher 'vendor' has no part 'table/item': .*elsewhere"):
        exfm.run(load(tmp_path, settings))


def test_a_model_that_starts_from_another_has_the_parts_of_its_teacher(tmp_path: Path) -> None:
    """Of its first window already: a frozen part is the teacher's, and not the other model's."""
    settings = config(tmp_path, "run", {"table/item": "frozen"}, make_log(600))
    vm = settings["models"]["vm"] | {"control": False}
    fm = settings["models"]["fm"] | {"keep": {"snapshots": "all"}}
    settings["models"] = {"fm": fm, "parent": vm | {"transfer": [], "keep": {"snapshots": "all"}}}
    train(load(tmp_path, settings))
    later = {"init_from": {"model": "parent", "at": 3}, "start": "2023-11-19"}
    settings["models"] = {"fm": fm, "vm": vm | later, "after": vm | {"init_from": {"model": "parent"}}}
    notes = exfm.run(load(tmp_path, settings))["notes"]
    assert any(note.startswith("after: it has no window yet, because the stream has no rows from") for note in notes)
    run_dir = tmp_path / "run"
    assert same(parts_of(run_dir, "vm", 4)["table/item"], parts_of(run_dir, "fm", 3)["table/item"])
    assert not same(parts_of(run_dir, "fm", 3)["table/item"], parts_of(run_dir, "parent", 3)["table/item"])
