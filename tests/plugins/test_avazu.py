"""`avazu`: the released file, hour by hour, without holding it."""

from __future__ import annotations

from datetime import datetime
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
from exfm_plugins.sources.avazu import source as module
from exfm_plugins.sources.avazu.hours import HOUR_US
from exfm_plugins.sources.avazu.source import Avazu
from tests.plugins.sources import everything, rows_of, run_example

HEADER = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21\n"
)
# The first lines of the release, and two of later hours.
LINES = [
    "1000009418151094273,0,14102100,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,"
    "44956a24,1,2,15706,320,50,1722,0,35,-1,79",
    "10000169349117863715,0,14102100,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,96809ac8,"
    "711ee120,1,0,15704,320,50,1722,0,35,100084,79",
    "10000371904215119486,1,14102101,1005,1,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,b3cf8def,"
    "8a4875bd,1,0,15704,320,50,1722,0,35,100084,79",
    "10000640724480838376,0,14103023,1002,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,e8275b8f,"
    "6332421a,0,0,15706,320,50,1722,0,35,-1,79",
]


def source(path: Path, lines: list[str], header: str = HEADER, **config: Any) -> Avazu:
    path.write_text(header + "".join(f"{line}\n" for line in lines))
    return Avazu(Avazu.Config(path=str(path), **config))


def line(hour: int, number: int) -> str:
    return LINES[0].replace("14102100", f"{hour:08d}").replace("ddd2926e", f"{number:08x}")


class TestAvazu(DataSourceTests):
    component = Avazu
    plugin = exfm_plugins.sources
    configs = ({"path": "{folder}/train.csv"}, {"path": "{folder}/train.csv", "table_rows": 50})

    def write(self, folder: Path) -> None:
        hours = sorted(14102100 + 100 * (number % 3) + number % 24 for number in range(90))
        source(folder / "train.csv", [line(hour, number) for number, hour in enumerate(hours)])


def test_released_lines(tmp_path: Path) -> None:
    of = source(tmp_path / "train.csv", LINES)
    rows = everything(of)
    assert [row["event_time"] for row in rows] == [
        datetime(2014, 10, 21, 0), datetime(2014, 10, 21, 0), datetime(2014, 10, 21, 1), datetime(2014, 10, 30, 23)
    ]  # fmt: skip
    assert [row["click"] for row in rows] == [0, 0, 1, 0]
    assert [row["example_id"] for row in rows] == [0, 1, 2, 3]
    assert [(row["hour_of_day"], row["weekday"]) for row in rows] == [(0, 1), (0, 1), (1, 1), (23, 3)]
    assert (rows[2]["device_ip"], rows[2]["C20"], rows[0]["C20"], rows[3]["C1"]) == ("b3cf8def", "100084", "-1", "1002")
    published = HEADER.strip().split(",")[3:]
    assert [feature.name for feature in of.schema().features] == [*published, "hour_of_day", "weekday"]
    assert of.time_range().end_us - of.time_range().start_us == 10 * 24 * 3600 * 10**6


def test_the_example_runs(tmp_path: Path) -> None:
    of = source(tmp_path / "train.csv", [line(14102100 + number // 5, number) for number in range(60)])
    assert run_example("avazu", tmp_path, path=of.config.path, table_rows=100)["models"]["fm"]["examples"] == 60


def test_tables_are_bounded(tmp_path: Path) -> None:
    tables = source(tmp_path / "train.csv", LINES, table_rows=1000).schema().tables()
    assert (tables["device_ip"], tables["site_id"], tables["C18"]) == (1000, 1000, 16)


@given(
    hours=st.lists(st.integers(0, 5), min_size=1, max_size=30), block=st.integers(100, 2000), window=st.integers(1, 4)
)
def test_hours_against_a_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: list[int], block: int, window: int
) -> None:
    """Also of a file whose hours go back: such a row is yielded where it stands, for the core to name it."""
    monkeypatch.setattr(module, "DelimitedFile", partial(DelimitedFile, block_bytes=block))
    of = source(tmp_path / "train.csv", [line(14102100 + hour, number) for number, hour in enumerate(hours)])
    reached = [max(hours[: i + 1]) for i in range(len(hours))]
    start = of.time_range().start_us - hours[0] * HOUR_US
    for first in range(0, 6, window):
        piece = rows_of(
            of.read(exfm.sources.Window(0, start + first * 3_600_000_000, start + (first + window) * 3_600_000_000))
        )
        expected = [i for i, hour in enumerate(reached) if first <= hour < first + window]
        assert [row["example_id"] for row in piece] == expected


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (LINES[0].replace("14102100", "14103199"), ["row 4", "YYMMDDHH", "14103199"]),
        (LINES[0].replace("14102100", ""), ["row 4", "YYMMDDHH", "given nothing"]),
        (LINES[0].replace("14102100", "noon"), ["row 4", "noon"]),
        ("1,0,14103100", ["row 4", "Expected 24 columns, got 3"]),
        (LINES[0].replace("14102100", "14103100").replace("273,0", "273,yes"), ["row 4", "yes"]),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        everything(source(tmp_path / "train.csv", [*LINES, bad]))
    assert all(word in str(error.value) for word in ["avazu", "train.csv", *words]), str(error.value)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no rows"):
        source(tmp_path / "train.csv", []).time_range()
    with pytest.raises(ValueError, match="does not name a column 'click'"):
        source(tmp_path / "test.csv", LINES, HEADER.replace("click,", "")).time_range()
