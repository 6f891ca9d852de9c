"""`exfm snapshots`, `promote` and `rollback`, and `--at` of `exfm predict` and `exfm export`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import exfm
from exfm.storage import snapshots
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log, write_log

Exfm = Callable[..., Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of six windows, of which the first two snapshots are retired, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    config = experiment_dict(write_log(folder / "log", make_log(rows=900)), str(folder / "run"))
    config["models"]["fm"] = {"backbone": {"name": "mlp"}, "embedding_dim": 8, "batch_size": 64}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "LEAVING", 2)
        return folder, exfm.run(load(folder, config))


@pytest.fixture
def run(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> tuple[str, str]:
    """The folder and the file of a copy of the run."""
    shutil.copytree(whole[0] / "run", tmp_path / "run")
    text = (whole[0] / "test.yaml").read_text().replace(str(whole[0] / "run"), str(tmp_path / "run"))
    (tmp_path / "test.yaml").write_text(text)
    return str(tmp_path / "run"), str(tmp_path / "test.yaml")


def listed(exfm_cli: Exfm, run_dir: str, *more: str) -> list[dict[str, Any]]:
    outcome = exfm_cli("snapshots", run_dir, "--json", *more)
    assert outcome.status == 0, outcome.err
    entries: list[dict[str, Any]] = json.loads(outcome.out)
    return entries


def test_the_list_has_the_figures_of_the_results(
    run: tuple[str, str], whole: tuple[Path, dict[str, Any]], exfm_cli: Exfm
) -> None:
    entries = listed(exfm_cli, run[0])
    assert [entry["model"] for entry in entries] == ["fm"] * 6 + ["vm"] * 6 + ["vm.control"] * 6
    for name in ("fm", "vm", "vm.control"):
        windows = whole[1]["models"][name]["tasks"]["click"]["windows"]
        mine = listed(exfm_cli, run[0], "--model", name)
        assert mine == [entry for entry in entries if entry["model"] == name]
        for entry, window in zip(mine, windows, strict=True):
            assert entry["version"] == window["window"]
            assert entry["tasks"]["click"]["ne"] == pytest.approx(window["ne"], rel=1e-9)
            folder = Path(run[0], "snapshots", name, f"{entry['version']:06d}")
            assert (entry["state"] == "retired") == (not folder.exists())
            assert entry["bytes"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            assert entry["newest"] == (entry["version"] == 5)
        assert [entry["state"] for entry in mine] == ["retired"] * 2 + ["published"] * 4


_WITHOUT_TORCH = """
import sys
import typer
from exfm.cli.main import app
run, show = sys.argv[1], ["show", "data_source.parquet"]
promote = ["promote", run, "--model", "vm", "--version"]
back = ["rollback", run, "--model", "vm"]
for command in (["snapshots", run], ["du", run], ["report", run], ["vacuum", run, "--dry-run"], [*promote, "latest"],
                [*promote, "4"], back, ["data", "list"], show):
    typer.main.get_command(app)(command, standalone_mode=False)
    heavy = sorted({"torch", "torchrec", "fbgemm_gpu"} & sys.modules.keys())
    assert not heavy, f"{command}: {heavy}"
"""


def test_commands_on_files_do_not_import_torch(run: tuple[str, str]) -> None:
    command = [sys.executable, "-c", _WITHOUT_TORCH, run[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "vm: production is snapshot 5" in done.stdout


def test_a_promoted_snapshot_is_read_and_rolled_back(
    run: tuple[str, str], tmp_path: Path, exfm_cli: Exfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")  # no line of the table is folded, whatever runs the tests
    run_dir, config = run
    for version in ("3", "4"):
        assert exfm_cli("promote", run_dir, "--model", "vm", "--version", version).out == (
            f"vm: production is snapshot {version}\n"
        )
    assert exfm_cli("promote", run_dir, "--model", "vm", "--version", "production", "--alias", "canary").status == 0
    aliases = {entry["version"]: entry["aliases"] for entry in listed(exfm_cli, run_dir, "--model", "vm")}
    assert aliases == {0: [], 1: [], 2: [], 3: [], 4: ["canary", "production"], 5: []}
    out = str(tmp_path / "vm.parquet")

    def predicted(*at: str) -> bytes:
        assert exfm_cli("predict", config, "--model", "vm", "--out", out, *at).status == 0
        metadata: dict[bytes, bytes] = pq.read_schema(out).metadata
        return metadata[b"exfm.snapshot"]

    assert predicted() == b"5" and predicted("--at", "latest") == b"5"
    assert predicted("--at", "production") == b"4"
    assert exfm_cli("rollback", run_dir, "--model", "vm").out == "vm: production is snapshot 3; it was 4\n"
    assert predicted("--at", "production") == b"3" and predicted("--at", "canary") == b"4"
    assert predicted("--at", "2023-11-18") == b"2"  # the log begins on the 15th, and 2 has trained on three days
    exported = exfm_cli(
        "export", config, "--model", "vm", "--out", str(tmp_path / "e"), "--no-compile", "--at", "canary"
    )
    assert "snapshot 4, trained until" in exported.out
    assert json.loads((tmp_path / "e" / "inputs.json").read_text())["snapshot"] == 4
    table = exfm_cli("snapshots", run_dir, "--model", "vm").out
    assert "published, newest" in table and "production" in table


def test_training_goes_on_beside_a_promoted_snapshot(
    run: tuple[str, str], tmp_path: Path, exfm_cli: Exfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`exfm run --fresh` forgets the aliases with the run."""
    run_dir, config = run
    assert exfm_cli("promote", run_dir, "--model", "fm", "--version", "2").status == 0
    store = Store(run_dir)
    for _ in range(3):  # as if the run had been three windows behind when the snapshot was promoted
        for name in ("vm", "vm.control", "fm"):
            store.log.remove_head("train", name)
        store.log.remove_head("supervise", "fm")
    monkeypatch.setattr(snapshots, "READING_S", 0.0)
    assert exfm_cli("run", config).status == 0
    states = {entry["version"]: entry["state"] for entry in listed(exfm_cli, run_dir, "--model", "fm")}
    assert states[2] == "published" and states[3] == "retired"
    assert exfm_cli("run", config, "--fresh").status == 0
    assert not Path(run_dir, "aliases").exists()


def test_mistakes_are_named(run: tuple[str, str], tmp_path: Path, exfm_cli: Exfm) -> None:
    run_dir, config = run

    def refused(*arguments: str) -> str:
        outcome = exfm_cli(*arguments)
        assert outcome.status == 2, outcome
        return " ".join(outcome.err.split())

    promote = ("promote", run_dir, "--model")
    assert "no model is called 'vm.contrl'. Did you mean 'vm.control'" in refused(
        *promote, "vm.contrl", "--version", "3"
    )
    assert "no snapshot 1 of 'vm', or no longer; there are: 2, 3, 4, 5" in refused(*promote, "vm", "--version", "1")
    assert "and not 'latest'" in refused(*promote, "vm", "--version", "3", "--alias", "latest")
    assert not Path(run_dir, "aliases").exists()
    assert "no snapshot of 'vm' has the alias 'production'." in refused("rollback", run_dir, "--model", "vm")
    assert "no config.yaml here" in refused("snapshots", str(tmp_path))
    predict = ("predict", config, "--model", "vm", "--out", str(tmp_path / "p.parquet"))
    assert "--at 3 and --snapshot 4: write one of the two" in refused(*predict, "--at", "3", "--snapshot", "4")
    assert "is called 'producton'" in refused(*predict, "--at", "producton")
    assert "--snapshot: write the number" in refused(*predict, "--snapshot", "production")
    assert not (tmp_path / "p.parquet").exists()


def test_commits_of_an_earlier_version_have_no_figures(run: tuple[str, str], exfm_cli: Exfm) -> None:
    store = Store(run[0])
    for version in range(6):
        commit = store.log.load("train", "fm", version)
        for name in ("prequential", "held"):
            del commit.counters[name]  # type: ignore[attr-defined]
        Path(run[0], f"commits/train/fm/{version:06d}.json").unlink()
        store.log.add("train", "fm", commit)
    assert all(entry["tasks"] == {} for entry in listed(exfm_cli, run[0], "--model", "fm"))
    assert "an earlier exfm committed, which kept no figures" in exfm_cli("snapshots", run[0]).out
