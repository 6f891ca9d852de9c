"""`kuaivideo`: both released files as one stream, with histories of strictly earlier clicks and passes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.kuaivideo.source import KuaiVideo
from tests.plugins.sources import everything, run_example

HEADER = "timestamp,user_id,item_id,is_click,is_like,is_follow,pos_items,neg_items\n"
START_MS = 761_105_059_450
# (ms after START_MS, user, item, click, like)
Row = tuple[int, int, int, int, int]
TRAIN: list[Row] = [(0, 7, 10, 1, 0), (5, 7, 11, 0, 0), (5, 8, 12, 1, 1), (9, 7, 13, 1, 1), (9, 7, 10, 0, 0)]
TEST: list[Row] = [(5, 7, 14, 1, 0), (20, 7, 3242314, 0, 0)]


def put(folder: Path, train: Sequence[Row] = TRAIN, test: Sequence[Row] = TEST, more: str = "") -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train.csv", train), ("test.csv", test)):
        lines = (f"{START_MS + t},{u},{i},{c},{k},0,10^11^12,\n" for t, u, i, c, k in rows)
        (folder / name).write_text(HEADER + "".join(lines) + (more if name == "test.csv" else ""))
    return str(folder)


def source(path: str, **config: Any) -> KuaiVideo:
    return KuaiVideo(KuaiVideo.Config(path=path, **config))


class TestKuaiVideo(DataSourceTests):
    component = KuaiVideo
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}"},
        {"path": "{folder}", "labels": ["like", "follow"], "history_length": 2, "time_unit": "us", "item_rows": 10},
    )

    def write(self, folder: Path) -> None:
        rows = [(number // 2 * 1000, number % 3, number * number % 17, number % 5 // 3, 0) for number in range(80)]
        put(folder, rows[::2], rows[1::2])


def test_both_files_are_one_stream(tmp_path: Path) -> None:
    of = source(put(tmp_path), labels=("click", "like"))
    rows = everything(of)
    assert [(row["user_id"], row["item_id"]) for row in rows] == [
        (7, 10), (7, 11), (8, 12), (7, 14), (7, 13), (7, 10), (7, 3242314)
    ]  # fmt: skip
    assert [row["click"] for row in rows] == [1, 0, 1, 1, 1, 0, 0]
    assert [row["like"] for row in rows] == [0, 0, 1, 0, 1, 0, 0]
    assert of.time_range() == exfm.sources.TimeRange(START_MS * 1000, (START_MS + 20) * 1000 + 1)
    assert [row["clicked_item"] for row in rows] == [[], [10], [], [10], [10, 14], [10, 14], [10, 14, 13]]
    assert [row["passed_item"] for row in rows] == [[], [], [], [], [11], [11], [11, 10]]
    assert rows[6]["clicked_age"] == pytest.approx([0.02, 0.015, 0.011])
    assert of.schema().tasks == ("click", "like")


def test_times_may_have_a_point(tmp_path: Path) -> None:
    expected = everything(source(put(tmp_path / "whole")))
    put(tmp_path / "point")
    for name in ("train.csv", "test.csv"):
        file = tmp_path / "point" / name
        file.write_text("".join(line.replace(",", ".0,", 1) for line in file.read_text().splitlines(keepends=True)))
        file.write_text(file.read_text().replace("timestamp.0", "timestamp"))
    assert everything(source(str(tmp_path / "point"))) == expected


def test_the_example_runs(tmp_path: Path) -> None:
    path = put(tmp_path / "data")
    results = run_example("kuaivideo", tmp_path, path=path, user_rows=20, item_rows=20)
    assert results["models"]["fm"]["examples"] == 7


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 8), st.integers(1, 2), st.integers(1, 99), st.integers(0, 1), st.just(0)),
        min_size=1,
        max_size=30,
    ),
    most=st.integers(1, 4),
)
def test_histories_against_a_search(tmp_path: Path, rows: list[Row], most: int) -> None:
    rows = sorted(rows, key=lambda row: row[0])
    found = everything(source(put(tmp_path, rows, ()), history_length=most))
    for (time, user, item, click, _), row in zip(rows, found, strict=True):
        assert (row["item_id"], row["click"]) == (item, click)
        for name, wanted in (("clicked_item", 1), ("passed_item", 0)):
            past = [i for t, u, i, c, _ in rows if u == user and t < time and c == wanted]
            assert row[name] == past[-most:]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("5,7,1,1,0\n", ["row 2", "got 5"]),
        ("soon,7,1,1,0,0,,\n", ["row 2", "soon"]),
        ("5,,1,1,0,0,,\n", ["row 2", "user_id", "missing"]),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, more: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        everything(source(put(tmp_path, more=more)))
    assert all(word in str(error.value) for word in ["kuaivideo", "test.csv", *words]), str(error.value)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*train.csv'"):
        source(str(tmp_path)).time_range()
    with pytest.raises(ValueError, match="past the year 9999; does it count a smaller unit"):
        source(put(tmp_path / "unit"), time_unit="s").time_range()
    with pytest.raises(ValueError, match="hold no rows"):
        source(put(tmp_path / "empty", (), ())).time_range()


def test_labels_are_checked_by_the_core(tmp_path: Path) -> None:
    put(tmp_path / "data", more="761105059480,7,1,2,0,0,,\n")
    with pytest.raises(exfm.ConfigError, match=r"sorted by time\), row 7: click.*given: 2"):
        run_example("kuaivideo", tmp_path, path=tmp_path / "data", user_rows=20, item_rows=20)
