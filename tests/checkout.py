"""Describes this checkout as an installed distribution, where the entry points of the installed exfm are older."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import tomllib
from importlib.metadata import distribution
from pathlib import Path

_PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def use_entry_points_of_checkout() -> None:
    """Puts a folder with the metadata of this checkout first on the path of this process and of those it starts.

    An editable installation reads modules from the checkout, but entry points as they were when it was made.
    """
    installed = distribution("exfm")
    kept = {(point.group, point.name, point.value) for point in installed.entry_points}
    project = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines: list[str] = []
    declared: set[tuple[str, str, str]] = set()
    for group, points in groups.items():
        lines.append(f"[{group}]")
        for name, value in points.items():
            lines.append(f"{name} = {value}")
            declared.add((group, name, value))
    if declared == kept:
        return
    folder = Path(tempfile.mkdtemp(prefix="exfm-metadata-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    info = folder / f"exfm-{installed.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(installed.read_text("METADATA") or "", encoding="utf-8")
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
