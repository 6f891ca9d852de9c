"""A program's archive holds no pickle, and an archive with a pickle is not loaded."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import xxhash

import exfm
import exfm.serving
from exfm.serving.export import Form, export

SAMPLES = "data/sample_inputs/model.pt"
WEIGHTS = "data/weights/model_weights_config.json"


class Harmful:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def exported(run: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "out"
    export(run, "ah", str(folder), Form(compiled=False))
    return folder


def crafted(exported: Path, folder: Path, changes: dict[str, bytes]) -> str:
    """Copies an export with other entries in its program, and checksums to match."""
    shutil.copytree(exported, folder)
    program = folder / "program.pt2"
    with zipfile.ZipFile(exported / "program.pt2") as source, zipfile.ZipFile(program, "w") as target:
        top = source.namelist()[0].partition("/")[0]
        entries = {entry.filename.partition("/")[2]: source.read(entry) for entry in source.infolist()}
        for name, data in {**entries, **changes}.items():
            target.writestr(f"{top}/{name}", data)
    described = json.loads((folder / "inputs.json").read_text())
    digest = xxhash.xxh3_128_hexdigest(program.read_bytes())
    described["files"]["program.pt2"] = {"bytes": program.stat().st_size, "xxh3": digest}
    (folder / "inputs.json").write_text(json.dumps(described))
    return str(folder)


def test_an_export_has_no_pickle(exported: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(exported / "program.pt2") as archive:
        for entry in archive.infolist():
            data = archive.read(entry)
            assert not data.startswith((b"\x80", b"PK")), entry.filename
            assert not entry.filename.endswith(SAMPLES) or data == b""
    exfm.serving.load(crafted(exported, tmp_path / "same", {}))  # the copy alone is accepted


@pytest.mark.parametrize("entry", [SAMPLES, WEIGHTS, "data/constants/custom_obj_0", "data/weights/weight_0.pkl"])
def test_a_crafted_export_is_refused_before_anything_is_executed(entry: str, exported: Path, tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    changes = {entry: pickle.dumps(Harmful(harm))}
    if entry == WEIGHTS:
        with zipfile.ZipFile(exported / "program.pt2") as archive:
            listed = json.loads(next(archive.read(name) for name in archive.namelist() if name.endswith(WEIGHTS)))
        first = next(iter(listed["config"].values()))
        first["use_pickle"] = True
        changes = {f"data/weights/{first['path_name']}": changes[WEIGHTS], WEIGHTS: json.dumps(listed).encode()}
    url = crafted(exported, tmp_path / "crafted", changes)
    with pytest.raises(exfm.RunError, match=r"program\.pt2: not a program that `exfm export` has written: data/"):
        exfm.serving.load(url)
    assert not harm.exists()
