"""Transfers that are cut, stalled, damaged or changed under way end with the whole file, or without any."""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.downloads import transfer as transfers
from exfm.downloads.get import get
from exfm.downloads.transfer import Patience
from exfm.errors import RunError
from exfm.interfaces.download import Checksum, Download, RemoteFile
from tests.downloads.server import Behaviour, Server

CONTENT = bytes(range(256)) * 64


class Lines:
    """Keeps what a download says, and how many bytes of each step are done."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.steps: list[list[int | None]] = []

    def begin(self, label: str, done: int, total: int | None) -> None:
        self.steps.append([done, total])

    def advance(self, size: int) -> None:
        done = self.steps[-1][0]
        assert done is not None
        self.steps[-1][0] = done + size

    def say(self, line: str) -> None:
        self.lines.append(line)

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exfm" / "downloads.json"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(CONTENT).running() as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def patience(waits: list[float]) -> Patience:
    return Patience(tries=3, stall_s=0.2, sleep=waits.append)


def log(server: Server, *, sha256: str | None = None, size: int | None = None) -> Download:
    checksum = None if sha256 is None else Checksum("sha256", sha256, "the publisher")
    file = RemoteFile(server.url(), size, checksum)
    return Download("log", "A log", "free", "http://here", "log", (file,))


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if not path.name.startswith("exfm-download")}


def test_a_cut_transfer_goes_on_where_it_ended(server, patience, waits, tmp_path):
    server.script = [Behaviour(cut=5_000), Behaviour(cut=3_000, stall=True), Behaviour(status=503)]
    said = Lines()
    (path,) = get(log(server, sha256=server.sha256, size=len(CONTENT)), tmp_path / "log", said, patience)
    assert path.read_bytes() == CONTENT and files(tmp_path / "log") == {"log.bin": len(CONTENT)}
    starts = ["", "bytes=5000-", "bytes=8000-", "bytes=8000-"]
    assert server.requests == [(start, '"first"' if start else "") for start in starts]
    # Progress resets the count of failures, so the wait doubles after the 503 alone.
    assert waits == [1, 1, 2]
    assert "after 5,000 of 16,384 bytes" in said.text and "no byte for 0.2 seconds" in said.text and "503" in said.text
    assert "published by the publisher" in said.text
    assert all(done == total for done, total in (said.steps[-2], said.steps[-1]))


def test_another_process_goes_on_and_a_complete_file_is_left_alone(server, patience, tmp_path):
    server.script = [Behaviour(cut=5_000), *[Behaviour(status=503)] * 2]
    with pytest.raises(RunError, match=r"503 .*3 times in a row; 5\.0 kB are kept in .*log\.bin\.part"):
        get(log(server), tmp_path, Lines(), patience)
    assert not (tmp_path / "log.bin").exists()
    get(log(server), tmp_path, Lines(), patience)
    assert server.requests[-1] == ("bytes=5000-", '"first"') and (tmp_path / "log.bin").read_bytes() == CONTENT
    before, said = len(server.requests), Lines()
    get(log(server), tmp_path, said, patience)
    assert len(server.requests) == before and "is complete" in said.text
    (tmp_path / "log.bin").write_bytes(b"changed")
    get(log(server), tmp_path, Lines(), patience)
    assert (tmp_path / "log.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("honest", [True, False])
def test_a_file_that_changes_under_way_is_transferred_anew(honest, server, patience, tmp_path):
    server.script = [Behaviour(cut=5_000), Behaviour(status=503), Behaviour(status=503)]
    with pytest.raises(RunError, match="503"):
        get(log(server), tmp_path, Lines(), patience)
    server.content, server.etag = CONTENT[::-1], '"second"'
    server.script = [Behaviour(ignore_if_range=not honest)]
    said = Lines()
    get(log(server), tmp_path, said, patience)
    assert (tmp_path / "log.bin").read_bytes() == CONTENT[::-1] and "changed" in said.text


@pytest.mark.parametrize("has_length", [True, False])
def test_a_server_without_ranges_sends_all_again_and_not_for_ever(has_length, server, patience, tmp_path):
    server.ranges, server.has_length = False, has_length
    server.script = [Behaviour(cut=5_000)] if has_length else []
    get(log(server), tmp_path / "once", Lines(), patience)
    assert (tmp_path / "once" / "log.bin").read_bytes() == CONTENT
    if has_length:
        server.script = [Behaviour(cut=5_000)] * 9
        with pytest.raises(RunError, match="3 times in a row"):
            get(log(server), tmp_path / "never", Lines(), patience)


def test_without_version_and_checksum_nothing_is_joined(server, patience, tmp_path):
    server.etag = ""
    server.script = [Behaviour(cut=5_000), Behaviour(), Behaviour(cut=5_000)]
    get(log(server), tmp_path / "unknown", Lines(), patience)
    get(log(server, sha256=server.sha256), tmp_path / "published", Lines(), patience)
    assert [asked for asked, _ in server.requests] == ["", "", "", "bytes=5000-"]


@pytest.mark.parametrize("published", [True, False])
def test_a_damaged_file_never_gets_its_name(published, server, patience, tmp_path, cache):
    checked = log(server, sha256=server.sha256 if published else None)
    if not published:
        get(checked, tmp_path / "first", Lines(), patience)
    server.script = [Behaviour(damage=True)]
    with pytest.raises(RunError, match="sha256") as error:
        get(checked, tmp_path / "log", Lines(), patience)
    assert server.sha256 in str(error.value) and not (tmp_path / "log" / "log.bin").exists()
    if published:
        assert files(tmp_path / "log") == {}
        get(checked, tmp_path / "log", Lines(), patience)
    else:
        # A user who knows that the publisher has changed the file removes the record.
        assert str(cache) in str(error.value)
        cache.unlink()
        assert get(checked, tmp_path / "log", Lines(), patience) and len(server.requests) == 2
    assert (tmp_path / "log" / "log.bin").stat().st_size == len(CONTENT)


def test_other_checksums_are_compared_too(server, patience, tmp_path):
    for digest, is_right in ((hashlib.md5(CONTENT).hexdigest(), True), ("0" * 32, False)):
        file = RemoteFile(server.url(), None, Checksum("md5", digest, "the publisher"))
        named = Download("log", "A log", "free", "http://here", "log", (file,))
        if is_right:
            get(named, tmp_path / "right", Lines(), patience)
        else:
            with pytest.raises(RunError, match="md5"):
                get(named, tmp_path / "wrong", Lines(), patience)


def test_a_file_of_another_size_is_not_transferred(server, patience, tmp_path):
    with pytest.raises(RunError, match="16,384 bytes, and the published file 16,385"):
        get(log(server, size=len(CONTENT) + 1), tmp_path, Lines(), patience)
    assert not (tmp_path / "log.bin").exists()
    server.has_length = False
    with pytest.raises(RunError, match="has sent 16,384 bytes, and the file has 16,385"):
        get(log(server, size=len(CONTENT) + 1), tmp_path, Lines(), patience)


def test_redirects_stay_in_the_web(server, patience, tmp_path):
    server.script = [Behaviour(redirect=server.url("elsewhere.bin"))]
    get(log(server), tmp_path / "web", Lines(), patience)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for address in (secret.as_uri(), "ftp://127.0.0.1/log.bin", "data:text/plain,secret"):
        server.script = [Behaviour(redirect=address)]
        with pytest.raises(RunError, match=r"which exfm does not follow|is not allowed"):
            get(log(server), tmp_path / "other", Lines(), patience)
    assert files(tmp_path / "other") == {"log.bin.part": 0}
    with pytest.raises(ValueError, match="no address of the web"):
        RemoteFile(secret.as_uri())


def test_errors_that_stay_are_not_tried_again(server, patience, waits, tmp_path):
    server.script = [Behaviour(status=404)]
    with pytest.raises(RunError, match="404 Not Found; its publisher may have moved it"):
        get(log(server), tmp_path, Lines(), patience)
    assert waits == [] and len(server.requests) == 1


def test_no_server_and_no_room(server, patience, waits, tmp_path):
    gone = RemoteFile("http://127.0.0.1:9/log.bin")
    with pytest.raises(RunError, match="no connection"):
        transfers.transfer(gone, tmp_path / "x.part", Lines(), patience)
    assert waits == [1, 2]
    with pytest.raises(RunError, match=r"free, and the download takes .*TB"):
        get(log(server, size=10**18), tmp_path / "log", Lines(), patience)
    assert server.requests == []


def test_a_transfer_belongs_to_a_single_process(server, patience, tmp_path):
    with (tmp_path / "log.bin.part").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="being written by another process"):
            get(log(server), tmp_path, Lines(), patience)


@given(cuts=st.lists(st.integers(1, 9_000), max_size=4), ranges=st.booleans())
def test_any_cuts_give_the_same_bytes(cuts, ranges, tmp_path_factory):
    with Server(CONTENT, ranges=ranges, script=[Behaviour(cut=cut) for cut in cuts]).running() as server:
        path = tmp_path_factory.mktemp("cuts") / "log.bin"
        transfers.transfer(RemoteFile(server.url()), path, Lines(), Patience(sleep=lambda _: None))
        assert path.read_bytes() == CONTENT
