"""Lists the releases of MovieLens on the web."""

from __future__ import annotations

from exfm.sources import Checksum, Download, RemoteFile

_SERVER = "https://files.grouplens.org/datasets/movielens"
_PUBLISHED = "TensorFlow Datasets"
_LICENCE = "GroupLens: for research; no redistribution and no commercial use without permission"


def _release(name: str, title: str, folder: str, size: int, sha256: str, files: tuple[str, ...]) -> Download:
    return Download(
        name=name,
        title=title,
        licence=_LICENCE,
        home="https://grouplens.org/datasets/movielens/",
        folder=folder,
        files=(RemoteFile(f"{_SERVER}/{folder}.zip", size, Checksum("sha256", sha256, _PUBLISHED), files),),
        must_accept=True,
        fields={"path": "{folder}"},
        example="examples/movielens.yaml",
    )


DOWNLOADS = (
    _release(
        *("movielens_100k", "MovieLens 100k: 100,000 ratings of 1,682 films, 1997 to 1998", "ml-100k", 4_924_029),
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        ("u.data", "u.item", "u.user", "README"),
    ),
    _release(
        *("movielens_1m", "MovieLens 1M: a million ratings of 3,900 films, 2000 to 2003", "ml-1m", 5_917_549),
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ("ratings.dat", "movies.dat", "users.dat", "README"),
    ),
    _release(
        *("movielens_20m", "MovieLens 20M: 20 million ratings of 27,000 films, 1995 to 2015", "ml-20m", 198_702_078),
        "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3",
        ("ratings.csv", "movies.csv", "README.txt"),
    ),
    _release(
        *("movielens_25m", "MovieLens 25M: 25 million ratings of 62,000 films, 1995 to 2019", "ml-25m", 261_978_986),
        "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
        ("ratings.csv", "movies.csv", "README.txt"),
    ),
)
