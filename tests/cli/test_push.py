"""`exfm push`: the destination has the files of the export and its card, and predicts as the export does."""

from __future__ import annotations

import base64
import http.server
import importlib.util
import json
import pickle
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

import exfm
import exfm.serving
from exfm.serving.export import Form, export
from tests.training.logs import experiment_dict, load, make_log, write_log

Exfm = Callable[..., Any]
ROWS = [{"user": 3, "item": 4}, {"user": 12, "item": None}]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a small model."""
    folder = tmp_path_factory.mktemp("pushed")
    config = experiment_dict(write_log(folder / "log", make_log(rows=300)), str(folder / "run"))
    config["models"] = {"vm": config["models"]["vm"] | {"transfer": [], "control": False}}
    experiment = load(folder, config)
    exfm.run(experiment)
    export(experiment, "vm", str(folder / "vm"), Form(compiled=False))
    return folder / "vm"


@pytest.fixture
def exported(original: Path, tmp_path: Path) -> Path:
    """A copy of the export, beside which lies a file of the user."""
    folder = tmp_path / "export"
    shutil.copytree(original, folder)
    (folder / ".env").write_text("TOKEN=secret")
    (folder / "notes.txt").write_text("mine")
    return folder


def weights_of(exported: Path) -> str:
    """Returns the name of the file of weights."""
    return next(exported.glob("weights-*.safetensors")).name


def check_same(actual: Path, exported: Path) -> None:
    """Checks that a folder holds the files of an export, and predicts alike."""
    content = {file.name: file.read_bytes() for file in actual.iterdir()}
    assert content.pop("README.md") == (exported / "MODEL_CARD.md").read_bytes()
    assert content == {
        name: (exported / name).read_bytes() for name in ("inputs.json", "program.pt2", weights_of(exported))
    }
    expected = exfm.serving.load(str(exported)).predict(ROWS)
    np.testing.assert_array_equal(exfm.serving.load(str(actual)).predict(ROWS)["click"], expected["click"])


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_a_folder_receives_the_export_and_nothing_else(
    form: str, exported: Path, tmp_path: Path, exfm_cli: Exfm
) -> None:
    target = form.format(tmp_path / "to")
    for _ in range(2):  # the second replaces the first
        outcome = exfm_cli("push", str(exported), target)
        assert outcome.status == 0, outcome.err
        files = f"README.md, inputs.json, program.pt2, {weights_of(exported)}"
        assert outcome.out == f"{target}: vm, snapshot 5: {files}\n"
    check_same(tmp_path / "to", exported)


def test_a_foreign_readme_is_not_replaced(exported: Path, tmp_path: Path, exfm_cli: Exfm) -> None:
    (tmp_path / "README.md").write_text("a project")
    outcome = exfm_cli("push", str(exported), str(tmp_path))
    assert outcome.status == 2 and "has a README.md and no export" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "export"]


def test_mistakes_are_named(exported: Path, tmp_path: Path, exfm_cli: Exfm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    export_dir = str(exported)

    def refused(*arguments: str, status: int = 2) -> str:
        outcome = exfm_cli("push", *arguments)
        assert outcome.status == status, (outcome.out, outcome.err)
        return str(outcome.err)

    assert "'owner/vm' is no kind of destination. Allowed: hf://OWNER/NAME, mlflow:NAME" in refused(
        export_dir, "owner/vm"
    )
    assert "hf://OWNER/NAME; given: hf://vm" in refused(export_dir, "hf://vm")
    assert "hg://owner/vm: the folder cannot be used" in refused(export_dir, "hg://owner/vm")
    assert "mlflow:NAME; given: no name" in refused(export_dir, "mlflow:")
    assert "--tracking-uri: say where MLflow is, or set MLFLOW_TRACKING_URI" in refused(export_dir, "mlflow:vm")
    assert "--tracking-uri: it is for targets mlflow:NAME" in refused(export_dir, "hf://a/b", "--tracking-uri", "x")
    assert "--public: it is for targets hf://OWNER/NAME" in refused(export_dir, "mlflow:vm", "--public")
    assert "no inputs.json here; `exfm export` writes it" in refused(str(tmp_path), f"{tmp_path}/to")
    (exported / "MODEL_CARD.md").unlink()
    assert "no MODEL_CARD.md here" in refused(export_dir, f"{tmp_path}/to")
    assert not (tmp_path / "to").exists()


def test_a_damaged_export_and_a_pickle_are_not_spread(exported: Path, tmp_path: Path, exfm_cli: Exfm) -> None:
    program, target = exported / "program.pt2", tmp_path / "to"
    whole = program.read_bytes()
    program.write_bytes(whole[:-1] + b"x")
    outcome = exfm_cli("push", str(exported), str(target))
    assert outcome.status == 1 and "program.pt2: corrupt" in outcome.err
    program.write_bytes(whole)
    with zipfile.ZipFile(program, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{top}/data/constants/custom_obj_0", pickle.dumps(print))
    described = json.loads((exported / "inputs.json").read_text())
    data = program.read_bytes()
    described["files"]["program.pt2"] = {"bytes": len(data), "xxh3": xxhash.xxh3_128_hexdigest(data)}
    (exported / "inputs.json").write_text(json.dumps(described))
    outcome = exfm_cli("push", str(exported), str(target))
    assert outcome.status == 1 and "program.pt2: not a program that `exfm export` has written" in outcome.err
    # A name that leads out of the folder is no file of an export.
    described["files"]["../notes.txt"] = described["files"]["program.pt2"]
    (exported / "inputs.json").write_text(json.dumps(described))
    outcome = exfm_cli("push", str(exported), str(target))
    assert outcome.status == 1 and "'../notes.txt' is not the name of a file of an export" in outcome.err
    assert not target.exists()


@pytest.mark.parametrize(
    ("module", "target", "extra"), [("huggingface_hub", "hf://a/b", "hub"), ("mlflow", "mlflow:vm", "mlflow")]
)
def test_a_missing_package_is_named(
    module: str, target: str, extra: str, exported: Path, exfm_cli: Exfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:1")
    outcome = exfm_cli("push", str(exported), target)
    assert outcome.status == 2 and f"pip install 'exfm[{extra}]'" in outcome.err


@pytest.mark.parametrize("store", ["folder", "sqlite"])
def test_mlflow_has_a_version_that_predicts_alike(
    store: str, exported: Path, tmp_path: Path, exfm_cli: Exfm, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install 'exfm[mlflow]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = (tmp_path / "mlruns").as_uri()
    if store == "sqlite":
        if None in map(importlib.util.find_spec, ("sqlalchemy", "alembic")):
            pytest.skip("a database takes the whole of MLflow: pip install mlflow")
        uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert exfm_cli("push", str(exported), "mlflow:ads-vm").out.startswith("models:/ads-vm/1: vm, snapshot 5: ")
    outcome = exfm_cli("push", str(exported), "mlflow://ads-vm", "--tracking-uri", uri)
    assert outcome.out.startswith("models:/ads-vm/2: ")
    client = mlflow.MlflowClient(tracking_uri=uri)
    for number in ("1", "2"):
        version = client.get_model_version("ads-vm", number)
        assert version.status == "READY" and version.tags["exfm.snapshot"] == "5"
        assert version.tags["exfm.watermark"].startswith("2023-11-21T00:00:00")
        source = client.get_model_version_download_uri("ads-vm", number)
        path = mlflow.artifacts.download_artifacts(source, dst_path=str(tmp_path / f"back-{number}"), tracking_uri=uri)
        check_same(Path(path), exported)
        assert client.get_run(version.run_id).info.status == "FINISHED"
    assert client.get_experiment_by_name("test") is not None
    outcome = exfm_cli("push", str(exported), "mlflow:a/b")
    assert outcome.status == 2 and "error: TARGET: mlflow:a/b: " in outcome.err


class Hub(http.server.ThreadingHTTPServer):
    """Answers the calls of huggingface_hub that a push needs, and keeps the commits. It is no test of the real Hub."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.status = 200
        self.created: list[dict[str, Any]] = []
        self.files = {"compiled.pt2": b"of an earlier push", "LICENSE": b"mine"}
        self.summaries: list[str] = []

    def answer(self, path: str, body: bytes) -> Any:
        if path == "/api/repos/create":
            self.created.append(json.loads(body))
            return {"url": f"{self.url}/owner/vm"}
        if path.startswith("/api/models/owner/vm/tree/main"):
            return [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.files]
        if path == "/api/models/owner/vm/preupload/main":
            files = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]}
        if path == "/api/models/owner/vm/commit/main":
            for entry in map(json.loads, body.splitlines()):
                self.commit(entry["key"], entry["value"])
            return {"commitUrl": f"{self.url}/owner/vm/commit/abc", "commitOid": "abc"}
        return {}

    def commit(self, key: str, value: dict[str, Any]) -> None:
        if key == "header":
            self.summaries.append(value["summary"])
        elif key == "file":
            self.files[value["path"]] = base64.b64decode(value["content"])
        else:
            assert key == "deletedFile"
            del self.files[value["path"]]


class _Answer(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = json.dumps(self.server.answer(self.path, body)).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    constants = pytest.importorskip(
        "huggingface_hub.constants", reason="huggingface_hub is not installed: pip install 'exfm[hub]'"
    )
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()
        thread.join()


def test_a_repository_of_the_hub_has_the_export_in_one_commit(
    hub: Hub, exported: Path, tmp_path: Path, exfm_cli: Exfm
) -> None:
    outcome = exfm_cli("push", str(exported), "hf://owner/vm")
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"{hub.url}/owner/vm/commit/abc: vm, snapshot 5: README.md")
    assert hub.summaries == ["vm: snapshot 5, trained until 2023-11-21T00:00+00:00"]
    (created,) = hub.created
    assert created.get("visibility") == "private" or created.get("private") is True
    assert hub.files.pop("LICENSE") == b"mine"  # compiled.pt2 has gone, as this export has none
    (tmp_path / "back").mkdir()
    for name, data in hub.files.items():
        (tmp_path / "back" / name).write_bytes(data)
    check_same(tmp_path / "back", exported)
    assert exfm_cli("push", str(exported), "hf://owner/vm", "--public").status == 0
    assert hub.created[1].get("visibility") == "public" or hub.created[1].get("private") is False


def test_a_refused_login_is_an_error(hub: Hub, exported: Path, exfm_cli: Exfm) -> None:
    hub.status = 401
    outcome = exfm_cli("push", str(exported), "hf://owner/vm")
    assert outcome.status == 1 and "`hf auth login` or HF_TOKEN logs in" in outcome.err
    assert "hf_secret" not in outcome.err and len(outcome.err.splitlines()) == 1
