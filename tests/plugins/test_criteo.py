"""`criteo`: the challenge's file and the click logs' days, spread over the time they cover."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.sources import DelimitedFile
from exfm.testing import DataSourceTests
from exfm_plugins.sources.criteo import source as module
from exfm_plugins.sources.criteo.releases import DayFile
from exfm_plugins.sources.criteo.source import Criteo
from tests.plugins.sources import everything, rows_of, run_example

DAY = timedelta(days=1)
# The first lines of the challenge's file.
LINES = [
    "0\t1\t1\t5\t0\t1382\t4\t15\t2\t181\t1\t2\t\t2\t68fd1e64\t80e26c9b\tfb936136\t7b4723c4\t25c83c98\t7e0ccccf\tde7995b8"
    "\t1f89b562\ta73ee510\ta8cd5504\tb2cb9c98\t37c9c164\t2824a5f6\t1adce6ef\t8ba8b39a\t891b62e7\te5ba7672\tf54016b9"
    "\t21ddcdc9\tb1252a9d\t07b5194c\t\t3a171ecb\tc5c50484\te8b83407\t9727dd16",
    "1\t2\t-1\t44\t1\t102\t8\t2\t2\t4\t1\t1\t\t4\t68fd1e64\tf0cf0024\t6f67f7e5\t41274cd7\t25c83c98\tfe6b92e5\t922afcc0"
    "\t0b153874\ta73ee510\t2b53e5fb\t4f1b46f3\t623049e6\td7020589\tb28479f6\te6c5b5cd\tc92f3b61\t07c540c4\tb04e4670"
    "\t21ddcdc9\t5840adea\t60f6221e\t\t3a171ecb\t43f13e8b\te8b83407\t731c3655",
]


def source(path: Path, **config: Any) -> Criteo:
    return Criteo(Criteo.Config(path=str(path), **config))


def put(path: Path, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{LINES[row % 2]}\n" for row in range(rows)))
    return path


class TestCriteo(DataSourceTests):
    component = Criteo
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}"},
        {"path": "{folder}/train.txt", "table_rows": 50},
        {"path": "{folder}", "release": "click_logs"},
    )

    def write(self, folder: Path) -> None:
        put(folder / "train.txt", 61)
        for day, rows in enumerate((20, 1, 33), start=4):
            put(folder / f"day_{day}", rows)


def test_the_challenge(tmp_path: Path) -> None:
    put(tmp_path / "train.txt", 28)
    rows = everything(source(tmp_path))
    assert everything(source(tmp_path / "train.txt")) == rows
    assert [row["event_time"] for row in rows] == [datetime(1970, 1, 1) + DAY * number / 4 for number in range(28)]
    assert [row["example_id"] for row in rows] == list(range(28))
    assert [row["click"] for row in rows] == [0, 1] * 14
    first, second = rows[:2]
    assert [first[f"I{i}"] for i in range(1, 14)] == [1, 1, 5, 0, 1382, 4, 15, 2, 181, 1, 2, 0, 2]
    assert (second["I2"], first["C1"], first["C22"], first["C26"]) == (-1, "68fd1e64", None, "9727dd16")
    tables = source(tmp_path, table_rows=5000).schema().tables()
    assert (tables["C9"], tables["C3"], tables["C20"], len(tables)) == (12, 5000, 16, 26)


def test_the_click_logs(tmp_path: Path) -> None:
    for day, count in ((1, 3), (2, 1), (3, 4)):
        put(tmp_path / f"day_{day}", count)
    of = source(tmp_path, release="click_logs")
    rows = everything(of)
    start = datetime(1970, 1, 2)
    expected = [start + DAY * share for share in (0, 1 / 3, 2 / 3)] + [start + DAY]
    expected += [start + DAY * (2 + quarter / 4) for quarter in range(4)]
    assert [row["event_time"] for row in rows] == expected
    assert [row["example_id"] & 0xFF for row in rows] == [0, 1, 2, 0, 0, 1, 2, 3]
    assert of.time_range() == exfm.sources.TimeRange(86_400_000_000, 4 * 86_400_000_000)
    alone = source(tmp_path / "day_3", release="click_logs")
    assert everything(alone) == rows[4:]
    assert alone.schema().tables()["C9"] == 252


def test_the_example_runs(tmp_path: Path) -> None:
    results = run_example("criteo", tmp_path, "stream.window=4d", path=put(tmp_path / "train.txt", 60), table_rows=100)
    assert results["models"]["fm"]["examples"] == 60


def test_what_is_not_needed_is_not_read(tmp_path: Path) -> None:
    put(tmp_path / "day_0", 2)
    (tmp_path / "day_1").write_text("nonsense")
    of = source(tmp_path, release="click_logs")
    assert of.time_range().end_us == 2 * 86_400_000_000
    assert len(rows_of(of.read(exfm.sources.Window(0, 0, 86_400_000_000)))) == 2


@given(
    rows=st.integers(1, 40),
    block=st.integers(100, 3000),
    bounds=st.tuples(st.integers(0, 8 * 86_400_000_000), st.integers(0, 8 * 86_400_000_000)).map(sorted),
)
def test_windows_against_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, block: int, bounds: list[int]
) -> None:
    monkeypatch.setattr(module, "DelimitedFile", partial(DelimitedFile, block_bytes=block))
    of = source(put(tmp_path / "train.txt", rows))
    times = [row * 7 * 86_400_000 // rows * 1000 for row in range(rows)]
    got = [row["example_id"] for row in rows_of(of.read(exfm.sources.Window(0, *bounds)))]
    assert got == [row for row, time in enumerate(times) if bounds[0] <= time < bounds[1]]


def test_times_hold_for_files_of_any_length() -> None:
    """A day of the click logs has 200 million rows; first row and time of a row are each other's inverse."""
    part = DayFile("day_23", 23, 1)
    rows = 195_841_983
    for row in (0, 1, 12_345_678, rows - 1):
        ms = row * 86_400_000 // rows
        first = module._first_row(part, rows, (23 * 86_400_000 + ms) * 1000)
        assert first <= row < module._first_row(part, rows, (23 * 86_400_000 + ms + 1) * 1000)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("0\t1\t2", ["row 2", "Expected 40 columns, got 3"]),
        (LINES[0].replace("1382", "many"), ["row 2", "many"]),
        (LINES[0].replace("0\t1\t1", "no\t1\t1"), ["row 2", "no"]),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: str, words: list[str]) -> None:
    (tmp_path / "train.txt").write_text("\n".join([*LINES, bad]))
    with pytest.raises(ValueError) as error:
        everything(source(tmp_path))
    assert all(word in str(error.value) for word in ["criteo", "train.txt", *words]), str(error.value)


def test_wrong_paths_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no file or folder"):
        source(tmp_path / "nowhere").time_range()
    put(tmp_path / "a" / "train.csv", 1)
    with pytest.raises(ValueError, match=r"no train.txt; found train.csv"):
        source(tmp_path / "a").time_range()
    with pytest.raises(ValueError, match=r"no day_0, day_1, ...; found train.csv"):
        source(tmp_path / "a", release="click_logs").time_range()
    put(tmp_path / "b" / "day_0", 1)
    put(tmp_path / "b" / "day_2", 1)
    with pytest.raises(ValueError, match="holds no day_1"):
        source(tmp_path / "b", release="click_logs").time_range()
    with pytest.raises(ValueError, match="compressed"):
        everything(source(put(tmp_path / "train.txt.gz", 1)))
