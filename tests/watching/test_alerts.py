"""`exfm alert`: each rule fires on a planted run and on no sound run, and alerts reach a webhook."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from exfm.storage.commits import CommitLog
from exfm.storage.manifests import seal, unseal
from exfm.storage.workspace import Workspace
from tests.watching.planted import failed, go_back, held, record

URL = "EXFM_TEST_ALERTS"
ALL: list[dict[str, Any]] = [
    {"kind": "lag", "above": "1d"},
    {"kind": "age", "above": "30d"},
    {"kind": "calibration", "below": 1e-3, "above": 1e3},
    {"kind": "ne_jump", "above": 9.0},
    {"kind": "held"},
    {"kind": "problem"},
]


def change(workspace: Workspace, model: str, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the counters of a model's newest commit."""
    path = f"commits/train/{model}/{CommitLog(workspace).head('train', model):06d}.json"
    manifest: Any = unseal(workspace.read(path))
    edit(manifest["counters"])
    workspace.write(path, seal(manifest))


def lagging(workspace: Workspace) -> None:
    go_back(workspace, "train", "vm", 3)


def old(workspace: Workspace) -> None:
    def edit(counters: dict[str, Any]) -> None:
        counters["teachers"]["fm"]["age_us"] = counters["teachers"]["fm"]["aged"] * 40 * 86_400_000_000

    change(workspace, "vm", edit)


def miscalibrated(workspace: Workspace) -> None:
    def edit(counters: dict[str, Any]) -> None:
        counters["prequential"]["click"]["prediction_sum"] *= 1e5

    change(workspace, "vm", edit)


def worse(workspace: Workspace) -> None:
    def edit(counters: dict[str, Any]) -> None:
        counters["prequential"]["click"]["loss_sum"] *= 100

    change(workspace, "vm", edit)


PLANTED: dict[str, tuple[Callable[[Workspace], None], str, str, str]] = {
    "lag": (lagging, "vm", "above 1d", "3 d behind the stream"),
    "age": (old, "vm", "above 30d", "supervision by fm is old: 40 d"),
    "calibration": (miscalibrated, "vm", "above 1000", "calibration of click is "),
    "ne_jump": (worse, "vm", "above 900.0%", "NE of click rose by "),
    "held": (held, "fm", "1 or more", "snapshot 5 is held, in use is snapshot 4: in window"),
    "problem": (failed, "vm", "crashed", "train vm has failed"),
}


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


@pytest.fixture
def rules(tmp_path: Path) -> Callable[..., str]:
    def write(*entries: dict[str, Any], **keys: Any) -> str:
        file = tmp_path / "rules.yaml"
        file.write_text(yaml.safe_dump({"rules": list(entries), **keys}), encoding="utf-8")
        return str(file)

    return write


def test_a_sound_run_fires_no_rule(whole: Path, rules: Callable[..., str], exfm_cli: Callable[..., Any]) -> None:
    outcome = exfm_cli("alert", str(whole), rules(*ALL))
    assert (outcome.status, outcome.err) == (0, "")
    # Of three models a lag, calibration, NE and snapshot each, and the age of the supervision of one student.
    assert outcome.out.splitlines()[-1] == "0 alerts; 13 values checked by 6 rules"


@pytest.mark.parametrize("kind", PLANTED)
def test_each_rule_fires_where_it_should(
    kind: str, copy: Path, rules: Callable[..., str], exfm_cli: Callable[..., Any]
) -> None:
    plant, model, limit, text = PLANTED[kind]
    plant(Workspace(str(copy)))
    outcome = exfm_cli("alert", str(copy), rules(*ALL), "--json")
    assert outcome.status == 3, outcome.err
    fired = [alert for alert in json.loads(outcome.out)["alerts"] if alert["kind"] == kind]
    assert (fired[0]["model"], fired[0]["limit"]) == (model, limit) and fired[0]["text"].startswith(text)
    sound = [entry for entry in ALL if entry["kind"] != kind]
    others = json.loads(exfm_cli("alert", str(copy), rules(*sound), "--json").out)["alerts"]
    assert [alert["kind"] for alert in others if alert["kind"] == kind] == []
    elsewhere = [{**entry, "models": ["vm.control"]} for entry in ALL if entry["kind"] == kind]
    if kind != "problem":  # the job of the model is its control's, too
        assert exfm_cli("alert", str(copy), rules(*elsewhere)).status == 0


@pytest.fixture
def server() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that takes alerts, and refuses those that are posted to /refused."""
    posted: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posted.append({"type": self.headers["Content-Type"], **json.loads(body)})
            self.send_response(500 if "refused" in self.path else 204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", posted
    server.shutdown()
    server.server_close()
    thread.join()


def test_alerts_reach_the_webhook_and_its_failure_is_said(
    copy: Path,
    rules: Callable[..., str],
    exfm_cli: Callable[..., Any],
    server: tuple[str, list[dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, posted = server
    held(Workspace(str(copy)))
    file = rules({"kind": "held", "name": "no fresh FM", "models": ["fm"]}, webhook={"url_env": URL})
    outcome = exfm_cli("alert", str(copy), file)
    assert outcome.status == 2 and f"the environment variable {URL} holds no http or https URL" in outcome.err
    monkeypatch.setenv(URL, f"{url}/hook?key=very-secret")
    outcome = exfm_cli("alert", str(copy), file)
    assert (outcome.status, outcome.err) == (3, "")
    (message,) = posted
    assert message["type"] == "application/json" and message["text"].splitlines()[1].startswith("no fresh FM: fm: ")
    assert [(alert["rule"], alert["model"]) for alert in message["alerts"]] == [("no fresh FM", "fm")]
    for wrong in ("/refused?key=very-secret", ":1/?key=very-secret"):
        monkeypatch.setenv(URL, url.rpartition(":")[0] + wrong if wrong[0] == ":" else url + wrong)
        outcome = exfm_cli("alert", str(copy), file)
        assert outcome.status == 3 and f"error: webhook: the server of {URL} does not take the alerts" in outcome.err
        assert "very-secret" not in outcome.err + outcome.out
    assert exfm_cli("alert", str(copy), rules({"kind": "lag", "above": "90d"}, webhook={"url_env": URL})).status == 0
    assert len(posted) == 2, "without an alert nothing is posted"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"kind": "lags", "above": "1d"}, "rules.0.kind: no kind of rule is called 'lags'. Did you mean 'lag'?"),
    "no limit": ({"kind": "calibration"}, "rules.0: a calibration rule needs below, above or both"),
    "no unit": ({"kind": "lag", "above": 6}, "rules.0.above: "),
    "a key": (
        {"kind": "held", "model": ["fm"]},
        "rules.0.model: Extra inputs are not permitted. Did you mean 'models'?",
    ),
    "a model": ({"kind": "held", "models": ["fmm"]}, "rules.0.models: no model is called 'fmm'. Did you mean 'fm'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_rule_is_named(case: str, whole: Path, rules: Callable[..., str], exfm_cli: Callable[..., Any]) -> None:
    rule, message = WRONG[case]
    outcome = exfm_cli("alert", str(whole), rules(rule))
    assert outcome.status == 2 and message in outcome.err, outcome.err


def test_a_model_without_a_window_has_no_value(
    copy: Path, rules: Callable[..., str], exfm_cli: Callable[..., Any]
) -> None:
    record(Workspace(str(copy)), "train", "vm")
    go_back(Workspace(str(copy)), "train", "vm", 6)
    outcome = exfm_cli("alert", str(copy), rules({"kind": "lag", "above": "1d", "models": ["vm"]}))
    assert (outcome.status, outcome.out.splitlines()[0]) == (0, "no value yet: lag: vm")
