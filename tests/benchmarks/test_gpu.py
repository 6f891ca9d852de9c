"""The scripts for GPUs run on a CPU with tiny sizes, where nothing but torch and a few small packages is installed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"
# Rows that take long on a CPU are left out: those that compile graphs of many pieces.
RUN = f"""
import sys

class Missing:
    # A bare machine has torch, numpy, pydantic and pluggy.
    absent = {{"fbgemm_gpu", "fsspec", "matplotlib", "omegaconf", "pyarrow", "rich", "torchrec", "typer"}}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.absent:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
sys.path.insert(0, {str(FOLDER)!r})
import backbones, cases, fp8, graphs, memory, pipeline, sequences, startup

out = ["--device", "cpu", "--tiny", "--out", sys.argv[1]]
backbones.main([*out, "--only", "mlp"], backend="eager")
sequences.main([*out, "--only", "attention", "mean"])
memory.main([*out, "--only", "dcn_v2"])
graphs.main([*out, "--only", "mlp", "gem"])
pipeline.main([*out, "--only", "short"])
fp8.main(out)
startup.main([*out, "--only", "eager"])
for kind, names in (("backbone", cases.BACKBONES), ("sequence_encoder", cases.ENCODERS)):
    for name in names:
        cases._CLASSES[kind][name]()
assert set(cases.TINY.fields()) == set(cases.BACKBONES)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the scripts write, by name."""
    out = tmp_path_factory.mktemp("gpu")
    subprocess.run([sys.executable, "-c", RUN, str(out)], check=True, capture_output=True, text=True)
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}


def test_every_script_measures_its_rows(results: dict[str, Any]) -> None:
    for result in results.values():
        for row in result["rows"].values():
            assert "failed" not in row.values(), row
            assert "no time" not in row.values(), row
        assert result["environment"]["torch"]
    assert {name: len(result["rows"]) for name, result in results.items()} == {
        "backbones": 1,
        "sequences": 2,
        "memory": 1,
        "graphs": 1,  # a backbone that reads histories has no graph
        "pipeline": 1,
        "fp8": 1,
        "startup": 1,
    }


def test_the_reference_has_the_flops_that_it_is_asked_for(results: dict[str, Any]) -> None:
    rows = results["backbones"]["rows"]
    assert all(row["MFLOP/example"] > 0 and row["compiled/reference"] > 0 for row in rows.values())
    # A step is three products a layer: 6 B W^2 FLOPs for the layers of the MLP.
    widths = [4 * 8, 16, 16, 8]
    expected = sum(6 * inputs * outputs for inputs, outputs in pairwise(widths)) / 1e6
    assert rows["mlp"]["MFLOP/example"] == pytest.approx(expected)


def test_recomputed_blocks_keep_fewer_bytes_on_paper(results: dict[str, Any]) -> None:
    row = results["memory"]["rows"]["dcn_v2"]
    assert 0 < row["recomputed estimate MB"] < row["estimate MB"]


def test_an_fp8_layer_is_close(results: dict[str, Any]) -> None:
    (row,) = results["fp8"]["rows"].values()
    assert 0 < row["layer error %"] < 8
    assert "capability 8.9" in results["fp8"]["notes"]["problem"]


def test_a_failure_does_not_stop_the_scripts_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    run_all = importlib.import_module("run_all")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    bodies = {
        "machine": "",
        "backbones": "raise ValueError",
        "fp8": "import time; time.sleep(9)",
        "memory": "print(7)",
    }
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body, encoding="utf-8")
    assert run_all.main(["--limit", "2", "--scripts", "backbones", "fp8", "memory"]) == 1
    printed = capfd.readouterr().out
    assert "failed with status 1" in printed
    assert "stopped after 2 s" in printed
    assert "memory     done" in printed
