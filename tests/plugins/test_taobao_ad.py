"""`taobao_ad`: the released files, impressions sorted by time, behaviours of strictly earlier seconds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.taobao_ad.source import TaobaoAd
from tests.plugins.sources import everything, run_example

SAMPLE = "user,time_stamp,adgroup_id,pid,nonclk,clk\n"
LOG = "user,time_stamp,btag,cate,brand\n"
# The first line of the release, and others around it: not in time order, with ties.
IMPRESSIONS = [
    (581738, 1494137644, 1, "430548_1007", 0), (449818, 1494137644, 3, "430548_1007", 1),
    (581738, 1494137640, 2, "430539_1007", 1), (914836, 1494137650, 1, "430548_1007", 0),
]  # fmt: skip
BEHAVIORS = [
    (581738, 1494137644, "pv", 6250, 91286), (581738, 1494137639, "cart", 6250, 91286),
    (581738, 1493741625, "buy", 4385, 7), (449818, 1494137643, "fav", 1, 2), (1, 1494137000, "pv", 8, 9),
]  # fmt: skip


def files(
    impressions: list[tuple[int, int, int, str, int]] = IMPRESSIONS,
    behaviors: list[tuple[int, int, str, int, int]] = BEHAVIORS,
) -> dict[str, str]:
    return {
        "raw_sample.csv": SAMPLE + "".join(f"{u},{t},{a},{p},{1 - c},{c}\n" for u, t, a, p, c in impressions),
        "ad_feature.csv": "adgroup_id,cate_id,campaign_id,customer,brand,price\n"
        "1,6406,83237,1,95471,170.0\n3,6406,83237,1,NULL,199.0\n2,392,77,5,8,10000.01\n",
        # The last name ends in a space, as released.
        "user_profile.csv": "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,"
        "occupation,new_user_class_level \n581738,0,5,2,5,,3,0,3\n449818,96,12,1,0,3,1,1,\n",
        "behavior_log.csv": LOG + "".join(f"{u},{t},{k},{c},{b}\n" for u, t, k, c, b in behaviors),
    }


def put(folder: Path, texts: Mapping[str, str]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return str(folder)


def source(path: str, **config: Any) -> TaobaoAd:
    return TaobaoAd(TaobaoAd.Config(path=path, **config))


def second_of(row: dict[str, Any]) -> int:
    return int(row["event_time"].replace(tzinfo=UTC).timestamp())


class TestTaobaoAd(DataSourceTests):
    component = TaobaoAd
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}"},
        {"path": "{folder}", "behaviors": ["buy"], "history_length": 1, "table_rows": 64},
        {"path": "{folder}", "behaviors": []},
    )

    def write(self, folder: Path) -> None:
        random = np.random.default_rng(1)
        users = [581738, 449818, 914836]
        impressions = [
            (users[random.integers(3)], int(random.integers(100)), int(random.integers(1, 4)), "430548_1007", 1)
            for _ in range(60)
        ]
        kinds = ["pv", "cart", "fav", "buy"]
        behaviors = [(users[random.integers(3)], int(random.integers(100)), kinds[i % 4], i, 7) for i in range(60)]
        put(folder, files(impressions, behaviors))


def test_released_lines(tmp_path: Path) -> None:
    rows = everything(source(put(tmp_path, files())))
    assert [(row["user"], second_of(row), row["adgroup_id"]) for row in rows] == [
        (581738, 1494137640, 2), (581738, 1494137644, 1), (449818, 1494137644, 3), (914836, 1494137650, 1)
    ]  # fmt: skip
    assert [row["click"] for row in rows] == [1, 0, 1, 0]
    assert [row["pid"] for row in rows] == ["430539_1007", *["430548_1007"] * 3]
    assert [row["brand"] for row in rows] == [8, 95471, None, 95471]
    assert rows[1]["price"] == pytest.approx(170)
    assert [row["cms_segid"] for row in rows] == [0, 0, 96, None], "user 914836 has no profile"
    assert [row["new_user_class_level"] for row in rows] == [3, 3, None, None]
    assert [row["pvalue_level"] for row in rows] == [None, None, 3, None]
    assert [row["history_cate"] for row in rows] == [[4385, 6250], [4385, 6250], [1], []]
    assert rows[1]["history_brand"] == [7, 91286]
    assert rows[1]["history_behavior"] == [3, 1], "the page view of the same second is not known yet"
    assert rows[1]["history_age"] == [1494137644 - 1493741625, 5]
    bought = everything(source(str(tmp_path), behaviors=("buy",)))
    assert [row["history_cate"] for row in bought] == [[4385], [4385], [], []]


def test_without_behaviors_the_log_is_not_read(tmp_path: Path) -> None:
    texts = files()
    del texts["behavior_log.csv"]
    of = source(put(tmp_path, texts), behaviors=())
    assert "history_cate" not in everything(of)[0]
    assert "history" not in {feature.name for feature in of.schema().features}


def test_any_file_system(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/taobao/{name}": text.encode() for name, text in files().items()})
    try:
        assert everything(source("memory://taobao")) == everything(source(put(tmp_path, files())))
    finally:
        memory.rm("/", recursive=True)


def test_the_example_runs(tmp_path: Path) -> None:
    path = put(tmp_path / "data", files())
    assert run_example("taobao_ad", tmp_path, path=path, table_rows=100)["models"]["vm"]["examples"] == 4


@given(
    impressions=st.lists(st.tuples(st.integers(1, 2), st.integers(0, 9)), min_size=1, max_size=15),
    behaviors=st.lists(st.tuples(st.integers(1, 3), st.integers(-2, 12), st.sampled_from(["pv", "buy"])), max_size=25),
    most=st.integers(1, 4),
)
def test_history_is_strictly_earlier(
    tmp_path: Path, impressions: list[tuple[int, int]], behaviors: list[tuple[int, int, str]], most: int
) -> None:
    """Against a search through all behaviours for each impression; a behaviour's category is its number."""
    log = [(user, second, kind, number, 0) for number, (user, second, kind) in enumerate(behaviors)]
    path = put(tmp_path, files([(user, second, 1, "p", 0) for user, second in impressions], log))
    for row in everything(source(path, history_length=most)):
        past = [one for one in log if one[0] == row["user"] and one[1] < second_of(row)]
        newest = sorted(past, key=lambda one: (one[1], one[3]))[-most:]
        assert row["history_cate"] == [one[3] for one in newest]
        assert row["history_age"] == [second_of(row) - one[1] for one in newest]


@pytest.mark.parametrize(
    ("file", "more", "words"),
    [
        ("raw_sample.csv", "581738,1494137644,9,430548_1007,1,0\n", ["the ad 9", "not in ad_feature.csv"]),
        ("raw_sample.csv", "581738,soon,1,430548_1007,1,0\n", ["row 4", "soon"]),
        ("raw_sample.csv", "581738,,1,430548_1007,1,0\n", ["row 4", "time_stamp", "missing"]),
        ("ad_feature.csv", "1,1,1,1,1,1.0\n", ["ad_feature.csv", "unique"]),
        ("user_profile.csv", "7,1\n", ["user_profile.csv, row 2", "got 2"]),
        ("behavior_log.csv", "1,1494137000,look,8,9\n", ["row 5", "btag", "pv, cart, fav, buy", "look"]),
        ("behavior_log.csv", ",1494137000,pv,8,9\n", ["row 5", "user", "missing"]),
    ],
)
def test_damaged_files_are_explained(tmp_path: Path, file: str, more: str, words: list[str]) -> None:
    texts = files()
    texts[file] += more
    with pytest.raises(ValueError) as error:
        everything(source(put(tmp_path, texts)))
    assert all(word in str(error.value) for word in ["taobao_ad", file, *words]), str(error.value)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*raw_sample.csv'"):
        source(str(tmp_path)).time_range()
    with pytest.raises(ValueError, match=r"raw_sample.csv holds no rows"):
        source(put(tmp_path / "empty", files([]))).time_range()
