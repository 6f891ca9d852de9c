"""`exfm export --weights-only` gives an export new weights, which a predictor takes over between two requests."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
import exfm.serving
from exfm.serving.export import Form, export
from exfm.serving.predictor import Predictor
from exfm.serving.request import repeat_context
from tests.serving.conftest import FIRST


@pytest.fixture(scope="module")
def rows(run: exfm.Experiment) -> pa.RecordBatch:
    window = exfm.sources.Window(0, run.source.time_range().start_us, run.source.time_range().end_us)
    return next(iter(run.source.read(window))).slice(0, 20)


@pytest.fixture
def folder(compiled: str, tmp_path: Path) -> Path:
    shutil.copytree(compiled, tmp_path / "out")
    return tmp_path / "out"


def refreshed(run: exfm.Experiment, folder: Path, model: str = "ah", at: str = "latest") -> None:
    export(run, model, str(folder), at=at, compute_figures=False, weights_only=True)


@pytest.mark.parametrize("machine_code", [True, False])
def test_a_predictor_takes_over_new_weights(
    machine_code: bool, run: exfm.Experiment, folder: Path, rows: pa.RecordBatch, tmp_path: Path
) -> None:
    predictor = exfm.serving.load(str(folder), compiled=machine_code)
    before = predictor.predict(rows)
    assert not predictor.refresh()
    programs = {name: (folder / name).read_bytes() for name in ("program.pt2", "compiled.pt2")}
    refreshed(run, folder)
    assert programs == {name: (folder / name).read_bytes() for name in programs}
    assert predictor.refresh() and not predictor.refresh()
    after = predictor.predict(rows)
    # An export with new programs, into which small weights too would have gone.
    export(run, "ah", str(tmp_path / "new"), Form(compiled=False), compute_figures=False)
    expected = exfm.serving.load(str(tmp_path / "new")).predict(rows)
    for task, values in after.items():
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-6)
        assert (before[task] != values).all()
    assert predictor.description.snapshot > int(FIRST)
    assert predictor.description.snapshot == json.loads((folder / "inputs.json").read_text())["snapshot"]


def test_the_program_of_a_request_takes_them_over_too(
    run: exfm.Experiment, rows: pa.RecordBatch, tmp_path: Path
) -> None:
    export(run, "ah", str(tmp_path), Form(compiled=False, requests=True), at=FIRST, compute_figures=False)
    predictor = exfm.serving.load(str(tmp_path))
    assert predictor.model.request is not None
    # A history that is averaged, and ids: the candidates share all but the price.
    shared = {spec.name for spec in predictor.description.request_inputs if spec.name.endswith(".examples")}
    assert shared == {"user.examples", "item.examples", "history.examples"}
    context, candidates = rows.select(["user", "history"]).slice(0, 1), rows.select(["item", "price"])
    repeated = repeat_context(context, candidates)
    before = predictor.predict_request(context, candidates)
    refreshed(run, tmp_path)
    assert predictor.refresh()
    after, expected = predictor.predict_request(context, candidates), predictor.predict(repeated)
    for task, values in after.items():
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-6)
        assert (before[task] != values).all()
    with pytest.raises(exfm.ConfigError, match="context: it has a single row; given: 20"):
        predictor.predict_request(rows.select(["user", "history"]), candidates)
    with pytest.raises(exfm.ConfigError, match="context: row 0: history: the value must be list"):
        predictor.predict_request({"user": "user-1", "history": "item-1"}, candidates)
    with pytest.raises(exfm.ConfigError, match="price: the column is missing"):
        predictor.predict_request(context, candidates.select(["item"]))


def test_no_request_fails_or_mixes_snapshots(run: exfm.Experiment, folder: Path, rows: pa.RecordBatch) -> None:
    copies = {at: shutil.copytree(folder, folder.parent / at) for at in (FIRST, "latest")}
    refreshed(run, copies["latest"])
    allowed = {exfm.serving.load(str(copy)).predict(rows)["click"].tobytes() for copy in copies.values()}
    assert len(allowed) == 2
    predictor, ended = exfm.serving.load(str(folder)), Event()

    def ask() -> set[bytes]:
        seen: set[bytes] = set()
        while not ended.is_set():
            seen.add(predictor.predict(rows)["click"].tobytes())
        return seen

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        try:
            for number in range(20):
                source = copies["latest" if number % 2 == 0 else FIRST]
                for name in sorted(json.loads((source / "inputs.json").read_text())["files"]):
                    shutil.copy(source / name, folder)
                shutil.copy(source / "inputs.json", folder)
                assert predictor.refresh()
        finally:
            ended.set()
        assert set.union(*(future.result() for future in asking)) == allowed


def test_weights_of_another_model_or_graph_are_refused(run: exfm.Experiment, folder: Path, exfm_cli: Any) -> None:
    with pytest.raises(
        exfm.ConfigError, match="it holds an export of 'ah', not of 'sa'; export without --weights-only"
    ):
        refreshed(run, folder, "sa")
    described = json.loads((folder / "inputs.json").read_text())
    before = sorted(path.name for path in folder.iterdir())
    (folder / "inputs.json").write_text(json.dumps(described | {"graph": "of another version"}))
    with pytest.raises(exfm.ConfigError, match="the model has other graph now than its programs"):
        refreshed(run, folder)
    assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(exfm.ConfigError, match=r"no inputs\.json here"):
        refreshed(run, folder.parent / "nowhere")


def test_after_an_error_the_old_snapshot_serves_on(run: exfm.Experiment, folder: Path, rows: pa.RecordBatch) -> None:
    predictor: Predictor = exfm.serving.load(str(folder))
    before = predictor.predict(rows)["click"]
    refreshed(run, folder)
    name = predictor.description.weights_file
    newer = next(path for path in folder.glob("weights-*") if path.name != name)
    whole = newer.read_bytes()
    newer.write_bytes(whole[:-1])
    with pytest.raises(exfm.RunError, match=r"safetensors: corrupt"):
        predictor.refresh()
    assert predictor.predict(rows)["click"].tobytes() == before.tobytes()
    newer.write_bytes(whole)
    assert predictor.refresh()
    refreshed(run, folder, at=FIRST)
    # The weights before stay for a process that is about to read them; those before go.
    assert {path.name for path in folder.glob("weights-*")} == {name, newer.name}


def test_an_export_of_an_earlier_version_is_named(folder: Path) -> None:
    described = json.loads((folder / "inputs.json").read_text())
    (folder / "inputs.json").write_text(json.dumps(described | {"format": 1}))
    with pytest.raises(exfm.RunError, match=r"an export of exfm 0\.1, whose programs hold their weights; export again"):
        exfm.serving.load(str(folder))
