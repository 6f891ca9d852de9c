"""`kuairand`: the released files as a stream, with histories of strictly earlier clicks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.kuairand.impressions import FILES, RANDOM_FILE, VIDEOS
from exfm_plugins.sources.kuairand.source import KuaiRand
from tests.plugins.sources import everything, run_example

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,"
    "play_time_ms,duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
START_MS = 1_649_347_200_000  # midnight of 8 April 2022 in China
# (seconds after START_MS, user, video, click)
Row = tuple[int, int, int, int]
FIRST: list[Row] = [(0, 7, 10, 1), (5, 7, 11, 0), (5, 8, 12, 1), (3600, 7, 13, 1)]
SECOND: list[Row] = [(5, 7, 14, 1), (7200, 7, 99, 0)]
RANDOM: list[Row] = [(7200, 7, 10, 1)]


def put(folder: Path, *logs: Sequence[Row], more: str = "") -> str:
    """Writes the files of the release; ``more`` follows in the second."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = logs or (FIRST, SECOND, RANDOM)
    for name, rows in zip((*FILES, RANDOM_FILE), logs, strict=False):
        is_random = int(name == RANDOM_FILE)
        lines = []
        for at, user, video, click in rows:
            feedback = f"{click},0,0,0,0,0,{at % 2}"
            lines.append(f"{user},{video},0,0,{START_MS + 1000 * at},{feedback},9,{500 * video},0,0,0,{is_random},1\n")
        (folder / name).write_text(HEADER + "".join(lines) + (more if name == FILES[1] else ""))
    videos = "".join(f'{video},{video // 2},NORMAL,0,Web,1,9.0,720,1280,4,9,"1,{video}"\n' for video in range(20))
    header = "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,"
    (folder / VIDEOS).write_text(f"{header}server_height,music_id,music_type,tag\n{videos}")
    return str(folder)


def source(path: str, **config: Any) -> KuaiRand:
    return KuaiRand(KuaiRand.Config(path=path, **config))


class TestKuaiRand(DataSourceTests):
    component = KuaiRand
    plugin = exfm_plugins.sources
    configs = ({"path": "{folder}"}, {"path": "{folder}", "random": True, "labels": ["like"], "history_length": 2})

    def write(self, folder: Path) -> None:
        rows = [(number // 2, number % 3, number * number % 17, number % 5 // 3) for number in range(60)]
        put(folder, rows[:30], rows[30:], rows[::7])


def test_the_files_are_one_stream(tmp_path: Path) -> None:
    path = put(tmp_path)
    rows = everything(source(path))
    assert [(row["user_id"], row["video_id"], row["click"], row["long_view"]) for row in rows] == [
        (7, 10, 1, 0), (7, 11, 0, 1), (8, 12, 1, 1), (7, 14, 1, 1), (7, 13, 1, 0), (7, 99, 0, 0)
    ]  # fmt: skip
    assert [row["clicked_video"] for row in rows] == [[], [10], [], [10], [10, 14], [10, 14, 13]]
    assert rows[4]["clicked_age"] == [3600, 3595] and [row["hour"] for row in rows] == [0, 0, 0, 0, 1, 2]
    # Its videos are described up to the nineteenth.
    assert [row["author_id"] for row in rows] == [5, 5, 6, 7, 6, None] and rows[0]["duration_s"] == 5
    with_random = everything(source(path, random=True))
    assert [row["is_rand"] for row in with_random] == [0] * 6 + [1] and with_random[6]["video_id"] == 10


def test_the_example_runs(tmp_path: Path) -> None:
    results = run_example("kuairand", tmp_path, path=put(tmp_path / "data"), user_rows=20, video_rows=20)
    assert results["models"]["fm"]["examples"] == 6


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("5,7,1,1,0\n", ["row 2", "got 5"]),
        (",7,20220408,1,1649347200000,1,0,0,0,0,0,0,9,9,0,0,0,0,1\n", ["row 2", "user_id", "missing"]),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, more: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        everything(source(put(tmp_path, more=more)))
    assert all(word in str(error.value) for word in ["kuairand", FILES[1], *words]), str(error.value)


def test_wrong_folders_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*log_standard_4_08"):
        source(str(tmp_path)).time_range()
    with pytest.raises(ValueError, match="hold no rows"):
        source(put(tmp_path / "empty", (), ())).time_range()
    path = put(tmp_path / "other")
    Path(path, VIDEOS).unlink()
    with pytest.raises(ValueError, match=r"no file .*video_features_basic_pure\.csv"):
        everything(source(path))
    Path(path, VIDEOS).write_text("video_id\n1\n")
    with pytest.raises(ValueError, match="author_id"):
        everything(source(path))
