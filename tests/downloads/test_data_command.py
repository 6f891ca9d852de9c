"""`exfm data`: the catalogue of the built-in sources, and the download of a log of a plugin's source."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from exfm.downloads.catalogue import collect
from exfm.downloads.get import RECORD
from exfm.errors import ConfigError
from exfm.interfaces.download import Checksum, Download, RemoteFile
from exfm.registry.discovery import default_registry
from tests.downloads.server import Behaviour, Server

ROOT = Path(__file__).parents[2]
ENTRIES = collect(default_registry()).entries
SOURCE = """
import exfm
from exfm.sources import Checksum, Download, RemoteFile

class Log(exfm.DataSource):
    name = "log"
    downloads = (
        Download(
            name="tiny", title="A tiny log", licence="free", home="http://here", folder="tiny", must_accept=True,
            files=(RemoteFile({url!r}, {size}, Checksum("sha256", {sha256!r}, "the tests"), ("rows.csv",)),),
            fields={{"path": "{{folder}}/rows.csv"}}, example="examples/tiny.yaml",
        ),
    )

    def schema(self): ...
    def time_range(self): ...
    def read(self, window, shard=None): ...

@exfm.hookimpl
def exfm_register_data_sources():
    return [Log]
"""


@pytest.fixture
def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("release/rows.csv", "time,click\n1,0\n")
    return content.getvalue()


@pytest.fixture
def server(archive: bytes) -> Iterator[Server]:
    with Server(archive).running() as running:
        yield running


@pytest.fixture
def tiny(server, plugins, tmp_path, monkeypatch):
    """Installs a source whose log is on the server, and works in a folder without files."""
    sha256 = hashlib.sha256(server.content).hexdigest()
    source = SOURCE.format(url=server.url("tiny.zip"), size=len(server.content), sha256=sha256)
    plugins.install("tiny_log", source)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "tiny"


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_built_in_log_has_an_example_that_names_it(name):
    log = ENTRIES[name].download
    text = (ROOT / log.example).read_text(encoding="utf-8")
    assert f"name: {ENTRIES[name].source}" in text
    head = text.partition("\nname:")[0]
    assert "exfm data get " in head and name in head


@pytest.mark.parametrize("example", sorted({entry.download.example for entry in ENTRIES.values()}))
def test_an_example_reads_the_folder_of_a_log(example):
    text = (ROOT / example).read_text(encoding="utf-8")
    logs = [entry.download for entry in ENTRIES.values() if entry.download.example == example]
    paths = [[value.format(folder=log.folder) for value in log.fields.values()] for log in logs]
    assert any(all(path in text for path in of_log) for of_log in paths)


def test_the_list_names_every_log(exfm_cli):
    table, listed = exfm_cli("data", "list"), json.loads(exfm_cli("data", "list", "--json").out)
    assert [entry["name"] for entry in listed] == list(ENTRIES)
    assert all(name in table.out for name in ENTRIES)
    assert all(bool(entry["urls"]) != bool(entry["by_hand"]) for entry in listed)


def test_a_log_by_hand_says_how(exfm_cli):
    shown = exfm_cli("data", "get", "avazu")
    assert shown.status == 2 and "kaggle.com" in shown.err and "academic use" in shown.out


def test_a_log_is_downloaded_once_its_terms_are_accepted(tiny, server, exfm_cli):
    refused = exfm_cli("data", "get", "tiny")
    assert refused.status == 2 and "--accept-licence" in refused.err and "Terms: free" in refused.out
    assert not tiny.exists() and server.requests == []
    server.script = [Behaviour(damage=True)]
    damaged = exfm_cli("data", "get", "tiny", "--accept-licence")
    assert damaged.status == 1 and "sha256" in damaged.err and list(tiny.iterdir()) == []
    done = exfm_cli("data", "get", "tiny", "--accept-licence")
    assert done.status == 0 and sorted(path.name for path in tiny.iterdir()) == [RECORD, "rows.csv"]
    assert "source: {name: log, path: tiny/rows.csv}" in done.out and "examples/tiny.yaml" in done.out
    # Lines, because a test has no terminal.
    assert "tiny.zip: " in done.err and "unpacking rows.csv: 15 B" in done.err and "\x1b" not in done.err
    assert json.loads((tiny / RECORD).read_text())["licence"] == "free"
    again = exfm_cli("data", "get", "tiny", "--accept-licence")
    assert again.status == 0 and "already" in again.err and len(server.requests) == 2


def test_a_file_of_the_users_is_not_replaced(tiny, server, exfm_cli, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "rows.csv").write_text("mine")
    shown = exfm_cli("data", "get", "tiny", "--accept-licence", "--to", "mine")
    assert shown.status == 2 and "mine/rows.csv is there already" in shown.err and server.requests == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["get", "movielens"], "Did you mean 'movielens_1m'"),
        (["get"], "`exfm data list` shows their names"),
        (["list", "avazu"], "takes no name"),
    ],
)
def test_wrong_arguments(arguments, message, exfm_cli):
    shown = exfm_cli("data", *arguments)
    assert shown.status == 2 and message in shown.err


def test_two_sources_with_the_same_log(tiny, plugins, server):
    source = SOURCE.format(url=server.url("tiny.zip"), size=1, sha256="0" * 64)
    plugins.install("other_log", source.replace('name = "log"', 'name = "other"'))
    from exfm.registry.discovery import discover

    with pytest.raises(ConfigError, match="two data sources offer the log 'tiny': log and other"):
        collect(discover())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "Tiny"}, "lower-case identifier"),
        ({"files": ()}, "either files or a text"),
        ({"files": (RemoteFile("http://a/x"), RemoteFile("http://b/x"))}, "called 'x'"),
    ],
)
def test_a_log_is_checked_when_it_is_defined(change, message):
    fields = {"name": "tiny", "files": (RemoteFile("http://a/x"),)} | change
    with pytest.raises(ValueError, match=message):
        Download(title="", licence="", home="", folder="", **fields)
    with pytest.raises(ValueError, match="is no sha256"):
        Checksum("sha256", "A" * 64, "")
    for url in ("http://a/.hidden", "http://a/", "http://a/%2e%2e"):
        with pytest.raises(ValueError, match="no file name"):
            RemoteFile(url)
