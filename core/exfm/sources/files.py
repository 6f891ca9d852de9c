"""One list of data files, for every reader of a folder: streams and teachers leave out and follow the same."""

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
_Shown = Callable[[str], bool]
_Info = dict[str, Any]


def list_files(filesystem: AbstractFileSystem, root: str, suffix: str) -> dict[str, _Info]:
    """Lists the files at a path, in name order, with what the file system says of each (``size`` and more).

    Names that begin with ``_`` or ``.`` below the path are what writers put beside the data (``_temporary``, ``.crc``)
    and are left out, unless a glob spells them. Local links are followed; a file that several paths lead to is listed
    once, and a folder that links to itself ends.

    Args:
        root: a folder (its sub-folders included), a file, or a glob of files and folders; without a protocol.
        suffix: how the names in a folder end; a file that is named or that a glob matches may be called anything.

    Returns:
        Information by path; empty where there is nothing.

    Raises:
        ValueError: a link leads nowhere.
        OSError: a folder cannot be read.
    """
    filesystem.invalidate_cache()
    wild = _WILD.search(root)
    base = root[: wild.start()].rpartition("/")[0] if wild else root
    shown = _shown_by(root.removeprefix(base))
    listed = _local if isinstance(filesystem, LocalFileSystem) else _remote
    infos = listed(filesystem, base, root, suffix, shown)
    return {path: infos[path] for path in sorted(infos) if infos[path]["type"] == "file"}


def _remote(filesystem: AbstractFileSystem, base: str, root: str, suffix: str, shown: _Shown) -> dict[str, _Info]:
    """Information by path, of a store without links."""
    if base != root:
        matched = filesystem.glob(root, detail=True)
        matched = {path: info for path, info in matched.items() if shown(path.removeprefix(base))}
    else:
        matched = {root: filesystem.info(root)} if filesystem.exists(root) else {}
    infos = {path: info for path, info in matched.items() if info["type"] == "file"}
    folders = [path for path in matched if path not in infos and "**" not in root]
    for folder in folders:
        below = filesystem.find(folder, detail=True)
        infos |= {
            path: info for path, info in below.items() if path.endswith(suffix) and shown(path.removeprefix(folder))
        }
    return infos


def _local(filesystem: AbstractFileSystem, base: str, root: str, suffix: str, shown: _Shown) -> dict[str, _Info]:
    """Information by path, links followed."""
    if base == root:
        matched = [root] if os.path.lexists(root) else []
    elif "**" in root:
        match = re.compile(glob_translate(root)).match
        matched = [path for path in _walk(base or "/", shown) if match(path)]
    else:
        matched = [path for path in glob.glob(root, include_hidden=True) if shown(path.removeprefix(base))]  # noqa: PTH207
    folders = {path for path in matched if Path(path).is_dir()}
    paths = set(matched) - folders
    for folder in folders:
        paths.update(path for path in _walk(folder, shown) if path.endswith(suffix))
    infos = {path: _info(filesystem, path) for path in _once(base, paths)}
    return {path: info for path, info in infos.items() if info is not None}


def _shown_by(pattern: str) -> _Shown:
    """Whether a path below the root is data; a pattern's hidden names are what the user asks for."""
    spelled = {part[0] for part in pattern.split("/") if part.startswith(("_", "."))}
    hidden = tuple({"_", "."} - spelled)

    def shown(within: str) -> bool:
        return not any(part.startswith(hidden) or part == "lost+found" for part in within.split("/"))

    return shown


def _walk(top: str, shown: _Shown) -> Iterator[str]:
    """Paths of the files below a local folder; a link is entered if it leads to where nobody has been."""
    been: set[str] = set()
    waiting = [top]
    while waiting:
        start = waiting.pop(0)
        if start != top and (os.path.realpath(start) in been or _holds(start, str(Path(start).parent), top)):
            continue
        for folder, folders, names in os.walk(start, onerror=_raise):
            been.add(os.path.realpath(folder))
            within = folder.removeprefix(top)
            folders[:] = [name for name in folders if shown(f"{within}/{name}")]
            waiting += [link for link in (f"{folder}/{name}" for name in sorted(folders)) if Path(link).is_symlink()]
            yield from (f"{folder.rstrip('/')}/{name}" for name in names if shown(f"{within}/{name}"))


def _holds(link: str, *folders: str) -> bool:
    """Whether a link leads to a folder that one of these lies in."""
    target = os.path.realpath(link)
    return any(os.path.commonpath([target, os.path.realpath(folder)]) == target for folder in folders)


def _once(base: str, paths: set[str]) -> set[str]:
    """One path for every file: the one without links, or else the first."""
    real_base = os.path.realpath(base or "/").rstrip("/")
    by_file: dict[str, str] = {}
    for path in sorted(paths):
        real = os.path.realpath(path)
        direct = real == real_base + path.removeprefix(base)
        by_file[real] = path if direct else by_file.get(real, path)
    return set(by_file.values())


def _info(filesystem: AbstractFileSystem, path: str) -> _Info | None:
    """What the file system says of a file; nothing where it went while the folder was read."""
    try:
        return dict(filesystem.info(path))
    except FileNotFoundError:
        if Path(path).is_symlink():
            raise ValueError(f"{path} is a link to {str(Path(path).readlink())!r}, which is not there") from None
        return None


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
