"""`exfm diagnose` on a run whose teachers from elsewhere know the truth, with and without a bias."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.evaluation.metrics import log_losses, logits
from tests.conftest import Outcome

RATES = {"dense": {"lr": 0.002}, "tables": {"lr": 0.2}}


def student(strategy: str, teacher: str) -> dict[str, Any]:
    return {
        "backbone": {"name": "dlrm"},
        "features": ["user_id", "ad_id", "surface"],
        "tasks": ["click"],
        "batch_size": 256,
        "optimizer": RATES,
        "transfer": [{"name": strategy, "teacher": teacher, "tasks": {"click": "conversion"}}],
        "control": True,
    }


def experiment(folder: Path) -> dict[str, Any]:
    """Configures two students of the truth, the second taught with a bias, and a small student of an FM of the run."""
    teacher = {"predictions": {"conversion": {"column": "logit", "kind": "logit"}}}
    fm = {
        "backbone": {"name": "wukong", "layers": 1},
        "tasks": ["click"],
        "supervision": {"delay": "6h", "embedding": "int8"},
    }
    of_fm = student("auxiliary_head", "fm") | {"transfer": [{"name": "direct", "teacher": "fm"}]}
    return {
        "name": "diagnosed",
        "run_dir": str(folder / "run"),
        "stream": {
            "source": {"name": "synthetic_ads", "days": 3, "rows_per_day": 4_000, "users": 300, "ads": 100},
            "window": "6h",
        },
        "evaluation": {"skip": 0.3, "replicates": 200},
        "models": {
            "fm": fm,
            "healthy": student("auxiliary_head", "truth"),
            "biased": student("direct", "shifted"),
            "of_fm": of_fm,
            "pair": of_fm | {"control": "of_fm.control", "inputs": [{"name": "pair_embedding", "teacher": "fm"}]},
            "untaught": {**student("direct", "truth"), "transfer": []},
        },
        "teachers": {name: {"path": str(folder / f"{name}.parquet"), **teacher} for name in ("truth", "shifted")},
    }


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("diagnose")
    file = folder / "diagnosed.yaml"
    content = experiment(folder)
    file.write_text(yaml.safe_dump({**content, "models": {"fm": content["models"]["fm"]}, "teachers": {}}))
    source = exfm.load_experiment(str(file)).source
    span = source.time_range()
    rows = pa.Table.from_batches(list(source.read(exfm.sources.Window(0, span.start_us, span.end_us))))
    logit = logits(rows["click_oracle"].to_numpy())
    for name, shift in (("truth", 0.0), ("shifted", 2.5)):
        pq.write_table(pa.table({"example_id": rows["example_id"], "logit": logit + shift}), folder / f"{name}.parquet")
    file.write_text(yaml.safe_dump(content))
    exfm.run(exfm.load_experiment(str(file)))
    return folder / "run"


@pytest.fixture
def diagnosis(run_dir: Path, exfm_cli: Callable[..., Outcome]) -> dict[str, Any]:
    done = exfm_cli("diagnose", str(run_dir), "--json")
    assert done.status == 0, done.err
    printed: dict[str, Any] = json.loads(done.out)
    assert printed == json.loads((run_dir / "diagnosis.json").read_text())
    return printed


def test_the_planted_bias_and_the_healthy_student_are_named(diagnosis: dict[str, Any]) -> None:
    entries = {entry["model"]: entry for entry in diagnosis["students"]}
    assert set(entries) == {"healthy", "biased", "of_fm", "pair"}
    assert entries["healthy"]["verdict"]["cause"] == "pays"
    biased = entries["biased"]
    assert biased["verdict"]["cause"] == "biased_teacher"
    assert biased["predictions"]["teacher"]["recalibration"]["shift"] == pytest.approx(-2.5, abs=0.2)
    assert biased["verdict"]["settings"][0].startswith("models.biased.transfer.0.name: now direct")
    assert "teachers.shifted.predictions.conversion.kind" in biased["verdict"]["settings"][1]
    assert any(reason.startswith("untaught, click") for reason in diagnosis["left_out"])


def test_students_that_look_the_teacher_up_are_listed_beside_those_that_do_not(diagnosis: dict[str, Any]) -> None:
    entries = {entry["model"]: entry for entry in diagnosis["students"]}
    share = entries["pair"]["gain_share"]
    assert entries["of_fm"]["lookups"] == [{"model": "pair", "inputs": ["pair_embedding"], "gain_share": share}]
    assert entries["of_fm"]["best_without_lookup"] == entries["of_fm"]["gain_share"]
    assert all(entries[name]["lookups"] == [] for name in ("pair", "healthy", "biased"))


def test_figures_are_those_of_the_stored_predictions(run_dir: Path, diagnosis: dict[str, Any]) -> None:
    """Joins the files by hand, for the teacher's headroom and age."""

    def rows(kind: str, model: str) -> pa.Table:
        files = sorted((run_dir / kind / model).glob("*.parquet"))
        return pa.concat_tables([pq.read_table(file) for file in files])

    results = json.loads((run_dir / "results.json").read_text())
    entry = next(entry for entry in diagnosis["students"] if entry["model"] == "of_fm")
    assert entry["gain"]["percent"] == pytest.approx(
        next(gain for gain in results["gains"] if gain["model"] == "of_fm")["ne_gain_percent"]
    )
    first = entry["predictions"]["control"]["examples"]
    # Without embeddings, because Arrow does not join lists.
    served_rows = rows("supervision", "fm").drop_columns(["embedding", "embedding_scale"])
    joined = rows("predictions", "of_fm.control").join(served_rows, "example_id", right_suffix="_fm")
    joined = joined.sort_by("example_id").slice(joined.num_rows - first)  # ids ascend with time
    hit = joined["prediction_click_fm"].is_valid().to_numpy()
    label, control, served = (
        joined[name].to_numpy()[hit] for name in ("label_click", "prediction_click", "prediction_click_fm")
    )
    losses = [log_losses(probability, label > 0.5).mean() for probability in (served, control)]
    assert entry["headroom"]["raw"]["percent"] == pytest.approx(100 * (1 - losses[0] / losses[1]))
    age_us = joined["event_time"].cast(pa.int64()).to_numpy() - joined["watermark"].cast(pa.int64()).to_numpy()
    assert entry["reach"]["age_s"]["p50"] == pytest.approx(np.median(age_us[hit]) / 1e6, rel=0.02)
    assert entry["reach"]["supervised_share"] == pytest.approx(results["supervision"]["fm"]["of_fm"]["hit_rate"])
    assert entry["reach"]["staleness_cost"]["percent"] is not None
    assert "hour of day" in entry["slices"] and "age of supervision" in entry["slices"]


def test_the_report_has_the_diagnosis_until_the_results_change(
    run_dir: Path, diagnosis: dict[str, Any], exfm_cli: Callable[..., Outcome]
) -> None:
    page, kept = run_dir / "report.html", (run_dir / "results.json").read_bytes()
    assert 'id="diagnosis"' in page.read_text()
    assert exfm_cli("report", str(run_dir)).status == 0
    assert 'id="diagnosis"' in page.read_text()
    file = str(run_dir.parent / "diagnosed.yaml")
    assert exfm_cli("run", file).status == 0
    assert 'id="diagnosis"' in page.read_text()
    results = json.loads(kept)
    results["gains"][0]["ne_gain_percent"] += 1
    (run_dir / "results.json").write_text(json.dumps(results))
    assert exfm_cli("report", str(run_dir)).status == 0
    assert 'id="diagnosis"' not in page.read_text()
    (run_dir / "results.json").write_bytes(kept)


@pytest.mark.parametrize("columns", ["60", "160"])
def test_the_table_fits_and_names_verdict_and_settings(
    run_dir: Path, exfm_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    done = exfm_cli("diagnose", str(run_dir))
    assert done.status == 0, done.err
    table = done.out.partition("\n\nbiased, click")[0]
    assert max(map(len, table.splitlines())) <= int(columns)
    assert "biased_teacher" in table and "pays" in table
    assert "models.biased.transfer.0.name" in done.out


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path, exfm_cli: Callable[..., Outcome]) -> None:
    done = exfm_cli("diagnose", str(tmp_path))
    assert done.status == 2
    assert "no results.json and no config.yaml" in done.err


def test_files_of_a_teacher_that_have_gone_are_named(run_dir: Path, exfm_cli: Callable[..., Outcome]) -> None:
    file = run_dir.parent / "truth.parquet"
    moved = file.rename(file.with_suffix(".gone"))
    done = exfm_cli("diagnose", str(run_dir))
    moved.rename(file)
    assert done.status == 2
    assert "teachers.truth.path" in done.err
