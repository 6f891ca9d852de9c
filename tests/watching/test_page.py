"""`exfm ui`: the page in a browser, and requests that it must refuse."""

from __future__ import annotations

import http.client
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import exfm
from exfm.storage.workspace import Workspace
from exfm.web.runs import find_runs
from exfm.web.server import PageServer
from tests.reporting.browser import Reader, chromium
from tests.watching.planted import failed, held, lagging, record

PATIENCE_S = 30
TEXT, FAINT = 4.5, 2.0


@contextmanager
def serving(*urls: str) -> Iterator[PageServer]:
    """Serves the page in a thread."""
    server = PageServer("127.0.0.1", 0, find_runs(urls))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def runs(whole: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs and other things; the first has problems."""
    folder = tmp_path_factory.mktemp("folder") / "runs"
    for name in ("a", "b"):
        shutil.copytree(whole, folder / name)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("notes")
    workspace = Workspace(str(folder / "a"))
    failed(workspace)
    lagging(workspace)
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[PageServer]:
    with serving(str(runs)) as running:
        yield running


def ask(server: PageServer, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(str(host), int(port))
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def test_it_shows_the_runs_of_a_folder_and_nothing_else(server: PageServer, runs: Path) -> None:
    listed = json.loads(ask(server, "/api/runs")[2])
    assert listed == [{"run": number, "label": str(runs / name)} for number, name in enumerate(("a", "b"))]
    assert json.loads(ask(server, "/api/status?run=1")[2])["run"] == str(runs / "b")
    for path in (
        "/api/status?run=2", "/api/status?run=-1", "/api/status?run=../b", "/api/status?run=%C2%B2", "/report?run=9",
        "/../b/config.yaml", "/config.yaml", "/report/../a/config.yaml", "/api/history?model=no", "/api/compare?run=0",
    ):  # fmt: skip
        status, _, content = ask(server, path)
        assert status == 404 and json.loads(content)["error"], path
    assert ask(server, "/api/status", "POST")[0] == ask(server, "/", "DELETE")[0] == 501
    assert ask(server, "/api/runs", Host="evil.example")[0] == 403
    assert ask(server, "/", "HEAD")[2] == b""
    status, headers, content = ask(server, "/report?run=0")
    assert status == 200 and content == (runs / "a" / "report.html").read_bytes()
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    with pytest.raises(exfm.ConfigError, match="neither a run nor a folder of runs"):
        find_runs([str(runs / "empty")])


def test_the_history_has_the_figures_and_gains_of_the_results(server: PageServer, runs: Path) -> None:
    points = json.loads(ask(server, "/api/history?run=1&model=vm&model=fm")[2])
    results = json.loads((runs / "b" / "results.json").read_text())["models"]
    for name in ("vm", "fm"):
        windows = results[name]["tasks"]["click"]["windows"]
        assert [point["index"] for point in points[name]] == [window["window"] for window in windows]
        for point, window in zip(points[name], windows, strict=True):
            assert point["tasks"]["click"]["ne"] == pytest.approx(window["ne"])
    controls = results["vm.control"]["tasks"]["click"]["windows"]
    for point, control in zip(points["vm"], controls, strict=True):
        task = point["tasks"]["click"]
        assert task["gain_percent"] == pytest.approx(100 * (control["ne"] - task["ne"]) / control["ne"])
    assert points["fm"][0]["tasks"]["click"]["gain_percent"] is None


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def wait_for(driver: Any, words: str, identifier: str) -> str:
    """Waits until an element has some words, and returns its text."""
    until = time.monotonic() + PATIENCE_S
    text = ""
    while words not in text and time.monotonic() < until:
        text = driver.find_element("id", identifier).text
        time.sleep(0.05)
    assert words in text, text
    return text


def resize(driver: Any, width: int, mode: str) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    features = [{"name": "prefers-color-scheme", "value": mode}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def test_the_page_shows_the_run_live_and_compares(
    driver: Any, server: PageServer, runs: Path, whole: Path, exfm_cli: Callable[..., Any]
) -> None:
    resize(driver, 1280, "light")
    driver.get(server.url)
    wait_for(driver, "as of", "live")
    problems = driver.find_element("id", "problems").text
    # As text, whatever an error has in it.
    assert "crashed vm, vm.control: train vm has failed: <b>disk</b> full" in problems
    assert "lagging vm: 2 windows behind the labels of fm" in problems and "held" not in problems
    table = driver.find_element("id", "models").text
    assert "train vm failed" in table and "teacher 2 w" in table
    assert len(driver.find_elements("css selector", "#ne svg path")) == 2  # no control
    assert "fm teaches vm" in driver.find_element("css selector", "#teaching svg").get_attribute("aria-label")
    # A problem that comes up while the page is open is there by the next poll.
    held(Workspace(str(runs / "a")))
    record(Workspace(str(runs / "a")), "supervise", "fm", state="waiting", waiting_for="the snapshot of 'fm'")
    wait_for(driver, "held fm: snapshot 5 is held, and snapshot 4 is in use", "problems")
    wait_for(driver, "the snapshot of 'fm'", "jobs")
    driver.find_element("id", "compare").click()
    compared = wait_for(driver, "Curves", "comparison")
    gains = json.loads(exfm_cli("compare", str(runs / "a"), str(runs / "b"), "--json").out)["gains"]
    assert len(gains) == 3
    assert [f"b {gain['model']} click {gain['examples']} 0.000 (0.000 to 0.000)" for gain in gains] == [
        line for line in compared.splitlines() if line.startswith("b ") and "(0.000 to" in line
    ]
    until = time.monotonic() + PATIENCE_S
    while not driver.find_elements("css selector", "#comparison .plot path") and time.monotonic() < until:
        time.sleep(0.05)
    assert len(driver.find_elements("css selector", "#comparison .plot path")) == 2
    for width in (1280, 390):
        for mode in ("light", "dark"):
            resize(driver, width, mode)
            time.sleep(0.3)  # the page draws again once its size has been the same for 150 ms
            reader = Reader(driver)
            assert reader.words_off_screen() == []
            for text, contrast in reader.contrasts():
                assert contrast >= (FAINT if text.startswith("<") else TEXT), (width, mode, text)
    assert all(address.startswith((server.url, "data:")) for address in reader.requests())
    assert reader.complaints() == []
    driver.find_element("css selector", "#run option[value='1']").click()
    wait_for(driver, "Nothing holds this run up.", "problems")


def test_compare_prints_the_differences(runs: Path, exfm_cli: Callable[..., Any], tmp_path: Path) -> None:
    shutil.copytree(runs / "b", tmp_path / "c")
    config = (tmp_path / "c" / "config.yaml").read_text()
    (tmp_path / "c" / "config.yaml").write_text(config.replace("embedding_dim: 8", "embedding_dim: 4", 1))
    printed = exfm_cli("compare", str(runs / "b"), str(tmp_path / "c"))
    assert printed.status == 0
    lines = [line.split() for line in printed.out.splitlines()]
    assert ["models.fm.embedding_dim", "8", "4"] in lines
    assert ["key", "b", "c"] in lines and "gains over b on the same examples" in printed.out
    assert any(line[:3] == ["c", "vm", "click"] and "(+0.00%" in " ".join(line) for line in lines)
    whole = json.loads(exfm_cli("compare", str(runs / "b"), str(tmp_path / "c"), "--json", "--unpaired").out)
    assert whole["gains"] == [] and len(whole["curves"]) == 2 * 3 * 6
    assert {entry["run"] for entry in whole["curves"]} == {"b", "c"}
    refused = exfm_cli("compare", str(runs / "b"))
    assert refused.status == 2 and "two runs or more" in refused.err
