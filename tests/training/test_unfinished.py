"""Leftovers of unfinished windows: files of other digests, a full disk, another job of the same model."""

from __future__ import annotations

import logging
import resource
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.cli.main import main
from exfm.scheduling.identity import open_run
from exfm.storage import snapshots
from exfm.storage.commits import CommitLog
from exfm.storage.hashing import FileRecord
from exfm.storage.manifests import seal, unseal
from exfm.supervision.store import Store
from tests.processes import run_function, start
from tests.training.logs import experiment_dict, load, make_log, predictions, supervision, write_log

WINDOW = 1


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=300)), str(tmp_path / "run"))
    config["stream"]["window"] = "2d"
    config["models"]["vm"]["control"] = False
    return config


def crash_before_the_manifest(folder: Path, config: dict[str, Any], stage: str) -> Store:
    """A run that is killed when the FM is to commit a stage of the second window."""
    add = CommitLog._add

    def failing(self: CommitLog, *arguments: Any) -> bool:
        if arguments[:2] == (stage, "fm") and arguments[2].window.index == WINDOW:
            raise InterruptedError
        return add(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CommitLog, "_add", failing)
        with pytest.raises(InterruptedError):
            exfm.run(load(folder, config))
    return Store(config["run_dir"])


def as_of_more_processes(path: Path) -> Path:
    """The same file with another digest."""
    start, _, _ = path.name.rpartition("-")
    return path.rename(path.with_name(f"{start}-0123456789ab{path.suffix}"))


@pytest.mark.parametrize("stage", ["train", "supervise"])
def test_files_of_another_digest_go_when_their_window_is_committed(
    stage: str, config: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = Path(crash_before_the_manifest(tmp_path, config, stage).workspace.root)
    folder = "supervision" if stage == "supervise" else "predictions"
    (left,) = (run_dir / folder / "fm").glob(f"window-{WINDOW:06d}-*")
    as_of_more_processes(left)
    for left in list((run_dir / "snapshots" / "fm").glob(f"{WINDOW:06d}/*")):
        as_of_more_processes(left)
    exfm.run(load(tmp_path, config))
    assert sum(table.num_rows for table in supervision(str(run_dir), "fm").values()) == 300
    assert sum(table.num_rows for table in predictions(str(run_dir), "fm").values()) == 300
    for version in (run_dir / "snapshots" / "fm").iterdir():
        assert len(list(version.iterdir())) == 3


def test_files_of_another_digest_go_at_the_next_start_too(config: dict[str, Any], tmp_path: Path) -> None:
    """Killed between the manifest and the removal; of a window that is not committed nothing is touched."""
    experiment = load(tmp_path, config)
    exfm.run(experiment)
    rows = Path(config["run_dir"], "predictions", "vm")
    stray, of_a_neighbour = (rows / f"window-{number:06d}-0123456789ab.parquet" for number in (2, 3))
    stray.touch()
    of_a_neighbour.touch()
    open_run(experiment, Store(config["run_dir"]))
    assert (stray.exists(), of_a_neighbour.exists()) == (False, True)


def test_supervision_that_was_committed_before_a_kill_stands(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As where the window is done again by another number of processes, whose sums differ in their last digits."""
    store = crash_before_the_manifest(tmp_path, config, "train")
    manifest_path = f"commits/supervise/fm/{WINDOW:06d}.json"
    manifest = unseal(store.workspace.read(manifest_path))
    assert manifest is not None
    path = Path(store.workspace.path(manifest["files"]["rows"]["path"]))
    table = pq.read_table(path)
    column = table.column_names.index("prediction_click")
    rounded = pa.compute.multiply(table.column(column), pa.scalar(1.0000001, pa.float32()))
    with store.workspace.writing(f"supervision/fm/window-{WINDOW:06d}-{{digest}}.parquet") as file:
        pq.write_table(table.set_column(column, "prediction_click", rounded), file)
    path.unlink()
    record: FileRecord = file.record()
    manifest["files"]["rows"] = {"path": record.path, "bytes": record.bytes, "xxh3": record.xxh3}
    store.workspace.write(manifest_path, seal(manifest))
    with caplog.at_level(logging.WARNING):
        exfm.run(load(tmp_path, config))
    assert "committed by another job, with other content; that commit stands (supervise)" in caplog.text
    assert supervision(config["run_dir"], "fm")[WINDOW].column(column) == rounded


def _run_with_small_files(path: str) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
    sys.argv = ["exfm", "run", path]
    main()


def test_a_full_disk_is_said_with_path_and_bytes_and_leaves_nothing_half(
    config: dict[str, Any], tmp_path: Path
) -> None:
    """A limit on the size of a file fails as a full disk does."""
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump(config))
    done = run_function(_run_with_small_files, str(path), environment={"TMPDIR": str(tmp_path)})
    assert done.returncode == 1
    assert (
        f"error: {tmp_path}/run/snapshots/fm/000000/model-{{digest}}.safetensors: File too large after" in done.stderr
    )
    assert "`exfm plan CONFIG`" in done.stderr
    assert not list(tmp_path.rglob(".exfm.*"))
    assert not list((tmp_path / "run").glob("commits/train/fm/*"))
    assert exfm.run(exfm.load_experiment(str(path)))["models"]["fm"]["examples"] == 300


def _train_once_there(path: str, go: Path) -> None:
    snapshots.READING_S = 0.0
    sys.argv = ["exfm", "train", path, "--model", "fm"]
    while not go.exists():
        pass
    main()


def test_two_jobs_of_one_model_both_end_well(tmp_path: Path) -> None:
    """Each removes the snapshots that nobody needs, those that the other writes once more included."""
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=200)), str(tmp_path / "run"))
    config["stream"]["window"] = "4h"
    config["models"] = {"fm": {"backbone": {"name": "mlp"}, "embedding_dim": 4, "batch_size": 64}}
    path, go = tmp_path / "test.yaml", tmp_path / "go"
    path.write_text(yaml.safe_dump(config))
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    jobs = [start(_train_once_there, str(path), go, said=folder) for folder in folders]
    go.touch()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0, 0], [(folder / "err").read_text() for folder in folders]
    assert not list(tmp_path.rglob(".exfm.*"))
