"""Reads the released files: user, video and feedback of each impression, and the authors of videos.

Legend: N impressions in time order.
"""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv

from exfm_plugins.sources.released_files import read_in_order

FILES = ("log_standard_4_08_to_4_21_pure.csv", "log_standard_4_22_to_5_08_pure.csv")
RANDOM_FILE = "log_random_4_22_to_5_08_pure.csv"
VIDEOS = "video_features_basic_pure.csv"
LABELS = {
    "click": "is_click",
    "like": "is_like",
    "follow": "is_follow",
    "comment": "is_comment",
    "forward": "is_forward",
    "hate": "is_hate",
    "long_view": "long_view",
}
"""Columns of labels, by label."""

_COLUMNS = {"time_ms": pa.int64(), "user_id": pa.int32(), "video_id": pa.int32(), "duration_ms": pa.float64()}
_COLUMNS |= {"tab": pa.int8(), "is_rand": pa.int8()} | dict.fromkeys(LABELS.values(), pa.int8())


@dataclass(frozen=True)
class Impressions:
    """Holds all impressions, sorted by time, in the released order at equal times; 33 bytes each.

    Attributes:
        time_N: microseconds since 1970.
        user_N, video_N: the released ids.
        duration_N: seconds that the video takes.
        tab_N: the tab of the app.
        random_N: 1 if the video was drawn at random, and not recommended.
        label_N: 1 if the user reacted, by the name in LABELS.
    """

    time_N: NDArray[np.int64]
    user_N: NDArray[np.int32]
    video_N: NDArray[np.int32]
    duration_N: NDArray[np.float32]
    tab_N: NDArray[np.int8]
    random_N: NDArray[np.int8]
    label_N: dict[str, NDArray[np.int8]]


def read_impressions(folder: str, files: tuple[str, ...]) -> Impressions:
    """Reads files of the release, and sorts them together.

    Raises:
        ValueError: a file is missing, all are empty, or a line cannot be read or lacks a value.
    """
    columns = read_in_order(folder, files, _COLUMNS, "time_ms", "kuairand")
    return Impressions(
        time_N=columns["time_ms"] * 1000,
        user_N=columns["user_id"],
        video_N=columns["video_id"],
        duration_N=(columns["duration_ms"] / 1000).astype(np.float32),
        tab_N=columns["tab"],
        random_N=columns["is_rand"],
        label_N={label: columns[column] for label, column in LABELS.items()},
    )


def read_authors(folder: str) -> NDArray[np.int64]:
    """Reads the author of every video; -1 for a video that the release does not describe.

    Raises:
        ValueError: the file is missing, or cannot be read.
    """
    url = f"{folder.rstrip('/')}/{VIDEOS}"
    filesystem, path = fsspec.url_to_fs(url)
    if not filesystem.exists(path):
        raise ValueError(f"kuairand: path: there is no file {url!r}")
    types = {"video_id": pa.int64(), "author_id": pa.int64()}
    try:
        with filesystem.open(path, "rb") as file:
            # With quotes, because the tags of a video are a list.
            options = csv.ConvertOptions(include_columns=list(types), column_types=types)
            table = csv.read_csv(file, convert_options=options)
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"kuairand: {url}: {error}") from error
    video = table["video_id"].to_numpy()
    author_by_video = np.full(int(video.max(initial=-1)) + 1, -1, np.int64)
    author_by_video[video] = table["author_id"].fill_null(-1).to_numpy()
    return author_by_video
