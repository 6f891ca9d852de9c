"""Tests reading text files by row number: any range of rows, any block size, and lines that cannot be read."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.interfaces.data_source import Origin
from exfm.sources import DelimitedFile

COLUMNS = {"n": pa.int64(), "word": pa.string()}


def file(path: Path, text: str, header: bool = False, block_bytes: int = 16, columns: object = None) -> DelimitedFile:
    path.write_text(text, encoding="utf-8", newline="")
    return DelimitedFile(str(path), columns or COLUMNS, owner="test", header=header, block_bytes=block_bytes)  # type: ignore[arg-type]


@given(
    values=st.lists(st.tuples(st.none() | st.integers(-99, 99), st.none() | st.text("aé", min_size=1)), max_size=30),
    block_bytes=st.integers(1, 60),
    first=st.integers(0, 32),
    length=st.integers(0, 32),
    header=st.booleans(),
    ended=st.booleans(),
    newline=st.sampled_from(["\n", "\r\n"]),
)
def test_any_rows(
    tmp_path: Path,
    values: list[tuple[int | None, str | None]],
    block_bytes: int,
    first: int,
    length: int,
    header: bool,
    ended: bool,
    newline: str,
) -> None:
    lines = ["n,word"] * header + [f"{'' if n is None else n},{word or ''}" for n, word in values]
    log = file(tmp_path / "f", newline.join(lines) + newline * (ended and bool(lines)), header, block_bytes)
    if values or header:
        assert log.rows == len(values)
    rows: list[tuple[int | None, str | None]] = []
    row = first
    for batch in log.read(first, first + length):
        assert Origin.from_batch(batch) == Origin(log.url, row)
        row += batch.num_rows
        rows += [(line["n"], line["word"]) for line in batch.to_pylist()]
    assert rows == values[first : first + length]


def test_columns_by_name(tmp_path: Path) -> None:
    log = file(tmp_path / "f", "more,word,n\n1,a,2\n3,b,4\n", header=True)
    assert [batch.to_pydict() for batch in log.read(0, 9)] == [{"n": [2, 4], "word": ["a", "b"]}]
    assert [batch.to_pydict() for batch in log.read(1, 2, ["word"])] == [{"word": ["b"]}]


def test_any_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/f.csv", b"1,a\n2,b\n")
    try:
        log = DelimitedFile("memory://f.csv", COLUMNS, owner="test", block_bytes=2)
        assert [batch.to_pydict() for batch in log.read(1, 9)] == [{"n": [2], "word": ["b"]}]
    finally:
        memory.rm("/", recursive=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,a\n2,b\n3,c\nfour,d\n", ["f, row 3", "'four'"]),
        ("1,a\n2,b\n3,c\n4\n", ["f, row 3", "Expected 2 columns, got 1"]),
        ("1,a\n2,b,c\n", ["f, row 1", "got 3"]),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path: Path, text: str, words: list[str]) -> None:
    log = file(tmp_path / "f", text)
    with pytest.raises(ValueError) as error:
        list(log.read(0, log.rows))
    assert all(word in str(error.value) for word in ["test: ", *words]), str(error.value)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"test: path: there is no file .*nowhere"):
        list(DelimitedFile(str(tmp_path / "nowhere"), COLUMNS, owner="test").read(0, 1))
    with pytest.raises(ValueError, match="compressed; unpack it"):
        DelimitedFile("f.csv.gz", COLUMNS, owner="test")
    with pytest.raises(ValueError, match=r"not name a column 'word'\. Did you mean 'words'\? \(one of: n, words\)"):
        list(file(tmp_path / "f", "n,words\n1,a\n", header=True).read(0, 1))
