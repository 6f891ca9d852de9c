"""Tests the list of data files: hidden names are left out, links followed, and every file listed once."""

import os
from pathlib import Path

import fsspec
import pytest

from exfm.sources import list_files


def _write(path: Path, text: str = "rows") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _listed(root: Path, pattern: str = "") -> list[str]:
    filesystem, path = fsspec.url_to_fs(f"{root}{pattern}")
    listed = list_files(filesystem, path, ".parquet")
    assert all(info["type"] == "file" and info["size"] == 4 for info in listed.values())
    return [os.path.relpath(name, root) for name in listed]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "_under" / "data"
    for name in ("b.parquet", "dt=1/a.parquet", "notes.txt", "lost+found/x.parquet", "c.parquet/part-0.parquet"):
        _write(root / name)
    for name in ("_temporary/0/a.parquet", ".ipynb_checkpoints/a.parquet", "dt=1/.a.parquet.crc", "_SUCCESS"):
        _write(root / name)
    return root


def test_hidden_names_below_the_folder_are_left_out(data):
    assert _listed(data) == ["b.parquet", "c.parquet/part-0.parquet", "dt=1/a.parquet"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("/*.parquet", ["b.parquet", "c.parquet/part-0.parquet"]),
        ("/dt=*", ["dt=1/a.parquet"]),
        ("/**/*.parquet", ["b.parquet", "c.parquet/part-0.parquet", "dt=1/a.parquet"]),
        ("/_temp*/**", ["_temporary/0/a.parquet"]),
        ("/b.parquet", ["b.parquet"]),
        ("/x*", []),
        ("/x", []),
    ],
)
def test_globs_and_names(data, pattern, expected):
    assert _listed(data, pattern) == expected


def test_a_store_without_links_lists_the_same():
    memory = fsspec.filesystem("memory")
    for name in ("b.parquet", "dt=1/a.parquet", "_temporary/a.parquet", "dt=1/.a.parquet", "notes.txt"):
        memory.pipe_file(f"/listed/{name}", b"rows")
    for root in ("/listed", "/listed/**/*.parquet", "/lis*d"):
        listed = list_files(memory, root, ".parquet")
        assert list(listed) == ["/listed/b.parquet", "/listed/dt=1/a.parquet"], root
    memory.rm("/listed", recursive=True)


def test_linked_files_and_folders_are_followed_once(tmp_path, data):
    _write(tmp_path / "other/dt=2/a.parquet")
    (data / "dt=2").symlink_to(tmp_path / "other/dt=2")
    (data / "z.parquet").symlink_to(tmp_path / "other/dt=2/a.parquet")  # the same file again
    (data / "aa-latest").symlink_to(data / "dt=1")  # a folder that is listed under its own name
    assert _listed(data) == ["b.parquet", "c.parquet/part-0.parquet", "dt=1/a.parquet", "dt=2/a.parquet"]
    assert _listed(data, "/dt=*/*.parquet") == ["dt=1/a.parquet", "dt=2/a.parquet"]
    assert _listed(data, "/d*/**/a.parquet") == ["dt=1/a.parquet", "dt=2/a.parquet"]


def test_a_folder_of_links_only_that_is_a_link_itself(tmp_path, data):
    _write(tmp_path / "store/x1.parquet")
    links = tmp_path / "links"
    links.mkdir()
    (links / "a.parquet").symlink_to(tmp_path / "store/x1.parquet")
    (tmp_path / "current").symlink_to(links)
    assert _listed(tmp_path / "current") == ["a.parquet"]


def test_links_in_a_circle_end(tmp_path, data):
    _write(tmp_path / "_under" / "private.parquet")
    (data / "self").symlink_to(data)
    (data / "dt=1" / "up").symlink_to(data / "..")  # leads above the folder: the user did not ask for its files
    (data / "c.parquet" / "across").symlink_to(data / "dt=1")
    (data / "dt=1" / "back").symlink_to(data / "c.parquet")
    assert _listed(data) == ["b.parquet", "c.parquet/part-0.parquet", "dt=1/a.parquet"]


def test_a_link_that_leads_nowhere_is_an_error_that_names_it(data):
    (data / "d.parquet").symlink_to("gone.parquet")
    with pytest.raises(ValueError, match=r"d\.parquet is a link to 'gone\.parquet', which is not there"):
        _listed(data)
