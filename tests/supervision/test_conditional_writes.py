"""A store that overwrites objects in spite of the condition is detected before any training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import exfm
from exfm.storage.workspace import Workspace
from tests.training.logs import experiment_dict, load, make_log, write_log


class Careless(MemoryFileSystem):
    """Ignores the condition of a write."""

    protocol = "careless"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        super().pipe_file(path, value)


class Incapable(Careless):
    """Rejects conditional writes."""

    protocol = "incapable"

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        if mode == "create":
            raise NotImplementedError("mode create")
        super().pipe_file(path, value)


@pytest.mark.parametrize("kind", [Careless, Incapable])
def test_a_store_without_conditional_writes_is_detected(kind: type[MemoryFileSystem], tmp_path: Path) -> None:
    fsspec.register_implementation(str(kind.protocol), kind, clobber=True)
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=60)), f"{kind.protocol}://{tmp_path.name}/run")
    chunks: list[object] = []
    with pytest.raises(exfm.RunError, match=rf"{kind.protocol}://.*writes over an object that exists .*If-None-Match"):
        exfm.run(load(tmp_path, config), chunks.append)
    assert chunks == [] and Careless.store == {}


@pytest.mark.parametrize("kind", ["", "memory://"])
def test_the_check_leaves_no_files(kind: str, tmp_path: Path) -> None:
    workspace = Workspace(f"{kind}{tmp_path}/run")
    workspace.check_create()
    assert workspace.fs.find(workspace.root) == []
