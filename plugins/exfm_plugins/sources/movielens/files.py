"""Finds the files of a MovieLens release in a folder or a zip archive, at any fsspec URL."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any, cast

import fsspec

from exfm.sources import limited


@dataclass(frozen=True)
class Release:
    """Names the files of a release; ``users`` is empty if the release has no attributes of users."""

    name: str
    ratings: str
    movies: str
    users: str = ""

    @property
    def files(self) -> tuple[str, ...]:
        """Returns the names of the required files."""
        return tuple(name for name in (self.ratings, self.movies, self.users) if name)


RELEASES = (
    Release("1M", "ratings.dat", "movies.dat", "users.dat"),
    Release("100k", "u.data", "u.item", "u.user"),
    Release("latest", "ratings.csv", "movies.csv"),
)


@dataclass(frozen=True)
class ReleaseFiles:
    """Locates the files of a release.

    Attributes:
        release: the release.
        url: URL of the folder or archive.
        paths: path of each file, by its released name; a path may end in ``.gz``.
        archived: whether the paths are members of a zip archive at ``url``.
    """

    release: Release
    url: str
    paths: Mapping[str, str]
    archived: bool

    def label(self, name: str) -> str:
        """Returns the name of a file for messages."""
        return f"{self.url}::{self.paths[name]}" if self.archived else self.paths[name]

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Opens a file by its released name, unpacked."""
        filesystem, root = fsspec.url_to_fs(self.url)
        path, packed_bytes = self.paths[name], 0
        with ExitStack() as stack:
            raw: IO[bytes]
            if self.archived:
                archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(filesystem.open(root, "rb"))))
                raw = stack.enter_context(archive.open(path))
                packed_bytes = archive.getinfo(path).compress_size
            else:
                raw = stack.enter_context(filesystem.open(path, "rb"))
            if path.endswith(".gz"):
                packed_bytes = packed_bytes or filesystem.size(path)
                raw = cast(IO[bytes], stack.enter_context(gzip.open(raw)))
            if packed_bytes:
                # A small archive may unpack to any size: limit it, because the files are read into memory.
                raw = limited(raw, packed_bytes, f"movielens: {self.label(name)}")
            yield raw


def find_release(url: str) -> ReleaseFiles:
    """Recognizes the release in a folder or zip archive by its files.

    Raises:
        ValueError: the folder does not exist, it holds no release or several, or a release's file is missing.
    """
    filesystem, root = fsspec.url_to_fs(url)
    if not filesystem.exists(root):
        raise ValueError(f"movielens: path: there is no file or folder {url!r}")
    archived = not filesystem.isdir(root)
    paths = _members(filesystem, root, url) if archived else filesystem.ls(root, detail=False)
    folders: dict[str, dict[str, str]] = {}
    # Plain files come last and replace a .gz of the same name.
    for path in sorted(paths, key=lambda path: not path.endswith(".gz")):
        file = PurePosixPath(path)
        folders.setdefault(str(file.parent), {})[file.name.removesuffix(".gz")] = path
    candidates: list[tuple[Release, dict[str, str]]] = []
    for names in folders.values():
        candidates += [(release, names) for release in RELEASES if release.ratings in names]
    if len(candidates) != 1:
        looked_for = ", ".join(f"{release.ratings} ({release.name})" for release in RELEASES)
        problem = "several MovieLens releases" if candidates else "no MovieLens release"
        raise ValueError(
            f"movielens: path: {url!r} holds {problem}; looked for one of {looked_for}, plain or .gz; "
            f"found {_listing(paths)}"
        )
    release, names = candidates[0]
    missing = [name for name in release.files if name not in names]
    if missing:
        raise ValueError(
            f"movielens: path: {url!r} looks like the {release.name} release, since it has {release.ratings}, "
            f"but it lacks {' and '.join(missing)}; found {_listing(names.values())}"
        )
    return ReleaseFiles(release, url, {name: names[name] for name in release.files}, archived)


def _members(filesystem: Any, root: str, url: str) -> list[str]:
    with filesystem.open(root, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(
                f"movielens: path: {url!r} is neither a folder nor a zip archive; give the folder that holds the "
                "released files, or the released zip"
            )
        with zipfile.ZipFile(file) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]


def _listing(paths: Any, most: int = 12) -> str:
    names = sorted(PurePosixPath(path).name for path in paths)
    if not names:
        return "nothing"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
