"""A manifest is rejected if it was changed after its commit, or names files of other models or folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

import exfm
from exfm.interfaces.data_source import Window
from exfm.storage.commits import Commit
from exfm.storage.manifests import seal, unseal
from exfm.supervision.store import Store

MANIFEST = "commits/train/vm/000000.json"


def committed(folder: Path) -> Store:
    """Commits a window of a model in a new run."""
    store = Store(str(folder / "run"))
    record = store.workspace.write("predictions/vm/window-000000-{digest}.parquet", b"rows")
    counters = {"examples": 4, "learned": ["click"], "soft_labels": {0: 0.1}, "seconds": 1 / 3}
    store.log.add("train", "vm", Commit(Window(0, 0, 100), counters, {"rows": record}))
    return store


def edited(store: Store, edit: Callable[[dict[str, Any]], None]) -> None:
    path = Path(store.workspace.path(MANIFEST))
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest, indent=2) + "\n")


def test_a_commit_reads_back(tmp_path: Path) -> None:
    commit = committed(tmp_path).log.load("train", "vm", 0)
    assert commit.counters == {"examples": 4, "learned": ["click"], "soft_labels": {"0": 0.1}, "seconds": 1 / 3}


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest["counters"].update(examples=5),
        lambda manifest: manifest["files"]["rows"].update(bytes=5),
        lambda manifest: manifest["window"].update(end_us=200),
        lambda manifest: manifest.update(xxh3="0" * 32),
        lambda manifest: manifest.pop("xxh3"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(edit: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    store = committed(tmp_path)
    edited(store, edit)
    with pytest.raises(exfm.RunError, match=r"commits/train/vm/000000\.json: damaged: .*`exfm repair .*/run`"):
        store.log.windows("train", "vm")


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_truncated_manifest_does_not_count(cut: int, tmp_path: Path) -> None:
    store = committed(tmp_path)
    path = Path(store.workspace.path(MANIFEST))
    path.write_bytes(path.read_bytes()[:cut])
    assert Store(str(tmp_path / "run")).log.windows("train", "vm") == []


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "predictions/vm/../../../outside",
        "predictions/fm/rows",
        "config.yaml",
        "..\\outside",
    ],
)
def test_a_manifest_names_no_file_but_its_models(path: str, tmp_path: Path) -> None:
    """The checksum does not protect here, because an attacker can compute it."""
    store = committed(tmp_path)
    (tmp_path / "outside").write_bytes(b"rows")
    record = replace(store.log.load("train", "vm", 0).files["rows"], path=path)
    manifest = unseal(store.workspace.read(MANIFEST))
    assert manifest is not None and record.xxh3 == xxhash.xxh3_128_hexdigest(b"rows")
    manifest["files"]["rows"]["path"] = path
    Path(store.workspace.path(MANIFEST)).write_bytes(seal(manifest))
    with pytest.raises(exfm.RunError, match=r"damaged: it names .*, which is no file of"):
        store.log.load("train", "vm", 0)
