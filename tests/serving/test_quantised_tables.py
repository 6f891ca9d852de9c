"""Tables of 8 bits: an export of them predicts nearly the same, says at which loss, and takes over new weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import exfm
import exfm.serving
from exfm.serving.export import Form, export
from exfm.serving.quantised_tables import quantise
from tests.serving.conftest import FIRST


def test_a_row_is_at_most_half_a_step_off() -> None:
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0))
    table = quantise(rows)
    step_R1 = (rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)) / 255
    assert ((table.dequantise() - rows).abs() <= step_R1 * 0.51).all()
    assert table.codes_RD.dtype == torch.uint8
    assert table.codes_RD.nbytes + table.scales_R2.nbytes < rows.nbytes / 2


def test_an_export_with_tables_of_8_bits(run: exfm.Experiment, tmp_path: Path, exfm_cli: Any) -> None:
    whole, small = str(tmp_path / "whole"), str(tmp_path / "small")
    export(run, "ah", whole, Form(compiled=False), compute_figures=False)
    form = Form(compiled=False, requests=True, tables="int8")
    written = export(run, "ah", small, form, at=FIRST, compute_figures=False)
    assert written.tables == "int8" and written.tables_ne_loss.keys() == {"click", "buy"}
    window = exfm.sources.Window(0, run.source.time_range().start_us, run.source.time_range().end_us)
    rows: pa.RecordBatch = next(iter(run.source.read(window))).slice(0, 50)
    predictor = exfm.serving.load(small)
    before = predictor.predict(rows)
    # The codes are refreshed as other weights are.
    newer = export(run, "ah", small, at="latest", compute_figures=False, weights_only=True)
    assert newer.tables == "int8" and all(abs(loss) < 1e-3 for loss in newer.tables_ne_loss.values())
    assert any(newer.tables_ne_loss.values())
    assert predictor.refresh()
    after, expected = predictor.predict(rows), exfm.serving.load(whole).predict(rows)
    shared = predictor.predict_request(
        rows.select(["user"]).slice(0, 1), rows.select(["item", "price", "history"]).slice(0, 1)
    )
    for task, values in after.items():
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-3)
        assert (values != expected[task]).any() and (values != before[task]).all()
        np.testing.assert_allclose(shared[task], values[:1], rtol=0, atol=1e-6)
    assert json.loads(Path(small, "inputs.json").read_text())["tables"] == "int8"


def test_combinations_that_there_are_not(run: exfm.Experiment, tmp_path: Path) -> None:
    with pytest.raises(exfm.ConfigError, match="--onnx: an ONNX model has tables in fp32; given: --tables int8"):
        export(run, "ah", str(tmp_path), Form(compiled=False, onnx=True, tables="int8"))
