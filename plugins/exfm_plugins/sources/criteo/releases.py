"""Finds the files of a Criteo release, and the days that each file covers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import fsspec

ReleaseName = Literal["challenge", "click_logs"]

_DAY_FILE = re.compile(r"day_(\d+)")

# Number of distinct values of C1 to C26; the click logs order the columns differently from the challenge.
CHALLENGE = (
    1_460, 583, 10_131_227, 2_202_608, 305, 24, 12_517, 633, 3, 93_145, 5_683, 8_351_593, 3_194, 27, 14_992, 5_461_306,
    10, 5_652, 2_173, 4, 7_046_547, 18, 15, 286_181, 105, 142_572,
)  # fmt: skip
CLICK_LOGS = (
    227_605_432, 39_060, 17_295, 7_424, 20_265, 3, 7_122, 1_543, 63, 130_229_467, 3_067_956, 405_282, 10, 2_209, 11_938,
    155, 4, 976, 14, 292_775_614, 40_790_948, 187_188_510, 590_152, 12_973, 108, 36,
)  # fmt: skip

CARDINALITY = {"challenge": CHALLENGE, "click_logs": CLICK_LOGS}
CHALLENGE_DAYS = 7


@dataclass(frozen=True)
class DayFile:
    """Locates a file, whose rows are spread evenly over ``days`` days from ``first_day`` on."""

    url: str
    first_day: int
    days: int


def find_files(url: str, release: ReleaseName) -> tuple[DayFile, ...]:
    """Finds the files of a release, in order of time.

    Args:
        url: the only file, or the folder with the files.
        release: the release to find.

    Raises:
        ValueError: the path does not exist, there is no file of the release, or a day between two others is missing.
    """
    filesystem, root = fsspec.url_to_fs(url)
    if not filesystem.exists(root):
        raise ValueError(f"criteo: path: there is no file or folder {url!r}")
    if filesystem.isdir(root):
        names = [PurePosixPath(path).name for path in filesystem.ls(root, detail=False)]
        files = {name: f"{url.rstrip('/')}/{name}" for name in names}
        challenge = files.get("train.txt")
    else:
        names = [PurePosixPath(root).name]
        files = {names[0]: url}
        challenge = url  # a single file may have any name
    if release == "challenge":
        if challenge is None:
            raise _missing(url, "no train.txt", names)
        return (DayFile(challenge, 0, CHALLENGE_DAYS),)
    days: dict[int, str] = {}
    for name, file in files.items():
        if match := _DAY_FILE.fullmatch(name):
            days[int(match[1])] = file
    if not days:
        raise _missing(url, "no day_0, day_1, ...", names)
    missing = sorted(set(range(min(days), max(days))) - days.keys())
    if missing:
        raise _missing(url, f"no day_{missing[0]}", names)
    return tuple(DayFile(days[day], day, 1) for day in sorted(days))


def _missing(url: str, lack: str, names: list[str]) -> ValueError:
    listing = ", ".join(sorted(names)[:12]) or "nothing"
    return ValueError(
        f"criteo: path: {url!r} holds {lack}; found {listing}. The challenge is train.txt, the click logs "
        "(release: click_logs) day_0 to day_23, unpacked"
    )
