"""Lists data files the same for every reader of a folder: streams and teachers skip and follow the same paths."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.utils import glob_translate

_WILD = re.compile(r"[*?\[]")
_IsShown = Callable[[str], bool]
_Info = dict[str, Any]


def list_files(filesystem: AbstractFileSystem, root: str, suffix: str) -> dict[str, _Info]:
    """Lists the files at a path, in name order, with the file system's information on each (``size`` and more).

    Names that begin with ``_`` or ``.`` below the path are left out, unless a glob spells them, because writers put
    temporary files and checksums beside the data (``_temporary``, ``.crc``). Local links are followed; a file that
    several paths lead to is listed once, and a folder that links to itself is read once.

    Args:
        root: a folder (its sub-folders included), a file, or a glob of files and folders; without a protocol.
        suffix: the end of the names in a folder; a file that is named or that a glob matches may be called anything.

    Returns:
        Information by path; empty where no file exists.

    Raises:
        ValueError: a link leads nowhere.
        OSError: a folder cannot be read.
    """
    # fsspec caches listings, and a stream grows while it is followed.
    filesystem.invalidate_cache()
    base = root
    wild = _WILD.search(root)
    if wild:
        base = root[: wild.start()].rpartition("/")[0]
    is_shown = _visibility(root.removeprefix(base))
    list_infos = _list_local if isinstance(filesystem, LocalFileSystem) else _list_remote
    infos = list_infos(filesystem, base, root, suffix, is_shown)
    return {path: infos[path] for path in sorted(infos) if infos[path]["type"] == "file"}


def _list_remote(
    filesystem: AbstractFileSystem, base: str, root: str, suffix: str, is_shown: _IsShown
) -> dict[str, _Info]:
    """Lists information by path in a store without links."""
    matched: dict[str, _Info] = {}
    if base != root:
        for path, info in filesystem.glob(root, detail=True).items():
            if is_shown(path.removeprefix(base)):
                matched[path] = info
    elif filesystem.exists(root):
        matched = {root: filesystem.info(root)}
    infos = {path: info for path, info in matched.items() if info["type"] == "file"}
    # A glob with ** has matched the files of sub-folders itself.
    if "**" in root:
        return infos
    for folder in matched.keys() - infos.keys():
        for path, info in filesystem.find(folder, detail=True).items():
            if path.endswith(suffix) and is_shown(path.removeprefix(folder)):
                infos[path] = info
    return infos


def _list_local(
    filesystem: AbstractFileSystem, base: str, root: str, suffix: str, is_shown: _IsShown
) -> dict[str, _Info]:
    """Lists information by path, following links."""
    if base == root:
        # lexists: a link that leads nowhere is an error below, and not an empty list.
        matched = [root] if os.path.lexists(root) else []
    elif "**" in root:
        # Not glob, because glob does not enter links below ** and would not end in a circle of links.
        match = re.compile(glob_translate(root)).match
        matched = [path for path in _walk(base or "/", is_shown) if match(path)]
    else:
        matched = glob.glob(root, include_hidden=True)  # noqa: PTH207
        matched = [path for path in matched if is_shown(path.removeprefix(base))]
    paths: set[str] = set()
    for path in matched:
        if Path(path).is_dir():
            paths.update(below for below in _walk(path, is_shown) if below.endswith(suffix))
        else:
            paths.add(path)
    infos: dict[str, _Info] = {}
    for path in _deduplicate(base, paths):
        info = _info(filesystem, path)
        if info is not None:
            infos[path] = info
    return infos


def _visibility(pattern: str) -> _IsShown:
    """Returns a test of paths below the root: hidden names are no data, unless the pattern spells such a name."""
    spelled = {name[0] for name in pattern.split("/") if name.startswith(("_", "."))}
    hidden = tuple({"_", "."} - spelled)

    def is_shown(within: str) -> bool:
        # lost+found is at the top of every ext4 disk, and only root may read it.
        return not any(name.startswith(hidden) or name == "lost+found" for name in within.split("/"))

    return is_shown


def _walk(top: str, is_shown: _IsShown) -> Iterator[str]:
    """Yields the files below a local folder; enters a link if it leads to a folder that was not visited yet."""
    visited: set[str] = set()
    waiting = [top]
    while waiting:
        start = waiting.pop(0)
        # A link to a folder above itself or above the top would list files that the user did not ask for.
        if start != top and (os.path.realpath(start) in visited or _contains(start, str(Path(start).parent), top)):
            continue
        for folder, folders, names in os.walk(start, onerror=_raise):
            visited.add(os.path.realpath(folder))
            within = folder.removeprefix(top)
            # In place: os.walk enters the folders that remain in its list, and no links among them.
            folders[:] = [name for name in folders if is_shown(f"{within}/{name}")]
            for name in sorted(folders):
                if Path(f"{folder}/{name}").is_symlink():
                    waiting.append(f"{folder}/{name}")
            for name in names:
                if is_shown(f"{within}/{name}"):
                    yield f"{folder.rstrip('/')}/{name}"


def _contains(link: str, *folders: str) -> bool:
    """Tells whether a link leads to a folder that contains any of these folders."""
    target = os.path.realpath(link)
    return any(os.path.commonpath([target, os.path.realpath(folder)]) == target for folder in folders)


def _deduplicate(base: str, paths: set[str]) -> set[str]:
    """Picks a path for every file: the path without links, or else the first in order."""
    real_base = os.path.realpath(base or "/").rstrip("/")
    by_file: dict[str, str] = {}
    for path in sorted(paths):
        real = os.path.realpath(path)
        if real == real_base + path.removeprefix(base):
            by_file[real] = path
        else:
            by_file.setdefault(real, path)
    return set(by_file.values())


def _info(filesystem: AbstractFileSystem, path: str) -> _Info | None:
    """Returns the file system's information on a file; None where it was removed while the folder was read."""
    try:
        return dict(filesystem.info(path))
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise ValueError(f"{path} is a link to {str(Path(path).readlink())!r}, which is not there") from None
        return None


def _raise(error: OSError) -> None:
    # A folder that was removed while its parent was read is no error; os.walk swallows all others by default.
    if not isinstance(error, FileNotFoundError):
        raise error
