"""Archives give the files that are expected, and nothing else anywhere."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from exfm.downloads.unpacking import unpack
from exfm.errors import RunError
from tests.downloads.test_transfer import Lines

FILES = {"release/a.csv": b"a" * 1_000, "release/deep/b.csv": b"b", "release/other.bin": b"x"}


def write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture(params=[write_zip, write_tar])
def write_archive(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    def write(files: dict[str, bytes]) -> Path:
        path = tmp_path / "archive"
        request.param(path, files)
        return path

    return write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "outer" / "folder"
    path.mkdir(parents=True)
    return path


def everything(folder: Path) -> dict[str, bytes]:
    outer = folder.parent
    return {str(path.relative_to(outer)): path.read_bytes() for path in outer.rglob("*") if path.is_file()}


def test_expected_files_alone_are_kept(write_archive, folder):
    unpack(write_archive(FILES), "log.zip", ("b.csv", "a.csv"), folder, Lines())
    assert everything(folder) == {"folder/a.csv": b"a" * 1_000, "folder/b.csv": b"b"}


@pytest.mark.parametrize(
    "name", ["../a.csv", "release/../../a.csv", "/tmp/a.csv", "..\\a.csv", "C:\\a.csv", "release/../../../etc/x"]
)
def test_a_path_that_leads_out_is_refused(name, write_archive, folder):
    archive = write_archive(FILES | {name: b"evil"})
    with pytest.raises(RunError, match="leads out of the archive"):
        unpack(archive, "log.zip", ("a.csv",), folder, Lines())
    assert everything(folder) == {}


@pytest.mark.parametrize(
    ("files", "names", "message"),
    [
        (FILES, ("a.csv", "c.csv"), "has no file 'c.csv'"),
        (FILES | {"again/a.csv": b"2"}, ("a.csv",), "two of its files are called 'a.csv'"),
        ({"a.csv": bytes(70 << 20)}, ("a.csv",), "more than 200 times its size"),
    ],
)
def test_a_release_that_is_not_the_expected_leaves_nothing(files, names, message, write_archive, folder):
    with pytest.raises(RunError, match=message):
        unpack(write_archive(files), "log.zip", names, folder, Lines())
    assert everything(folder) == {}


def test_links_are_not_followed(folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with tarfile.open(tmp_path / "log.tar", "w") as archive:
        link = tarfile.TarInfo("a.csv")
        link.type, link.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(link)
    info = zipfile.ZipInfo("a.csv")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as packed:
        packed.writestr(info, str(secret))
    for name in ("log.tar", "log.zip"):
        with pytest.raises(RunError, match="is a link"):
            unpack(tmp_path / name, name, ("a.csv",), folder, Lines())
    assert everything(folder) == {}


def test_damage_and_other_formats(write_archive, folder, tmp_path):
    archive = write_archive({"a.csv": bytes(range(256)) * 500})
    content = bytearray(archive.read_bytes())
    middle = len(content) // 3
    for position in range(middle, middle + 20):
        content[position] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(RunError, match=r"damaged|neither"):
        unpack(archive, "log.zip", ("a.csv",), folder, Lines())
    (tmp_path / "page.zip").write_text("<html>not here</html>")
    with pytest.raises(RunError, match=r"neither a \.zip nor a \.tar"):
        unpack(tmp_path / "page.zip", "page.zip", ("a.csv",), folder, Lines())
    assert everything(folder) == {}
