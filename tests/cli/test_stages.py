"""`exfm run`, `train`, `supervise` and `predict` as a user calls them, without a terminal."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.supervision.store import Store

TRAINED = """
name: small
run_dir: {folder}/run
stream:
  source: {{name: synthetic_ads, days: 2, rows_per_day: 120, users: 20, advertisers: 5}}
  window: 1d
evaluation: {{replicates: 100}}
models:
  fm: {{backbone: {{name: mlp}}, tasks: [click]}}
"""


@pytest.fixture
def small(experiment: dict[str, Any], write: Any, tmp_path: Path) -> str:
    """Three small models over two days."""
    experiment["run_dir"] = str(tmp_path / "run")
    experiment["stream"]["source"] |= {"rows_per_day": 120}
    experiment["evaluation"] = {"replicates": 100}
    model = {"backbone": {"name": "mlp"}, "tasks": ["click"]}
    taught = model | {"transfer": [{"name": "direct", "teacher": "fm"}]}
    experiment["models"] = {"fm": model, "vm": taught, "other": model}
    return str(write(experiment))


def test_train_takes_several_models(small: str, tmp_path: Path, exfm_cli: Any) -> None:
    outcome = exfm_cli("train", small, "--model", "vm", "--model", "fm")
    assert outcome.status == 0 and outcome.out == "train vm, fm: 2 windows done; all there is\n"
    log = Store(str(tmp_path / "run")).log
    assert log.windows("train", "fm") == log.windows("train", "vm") == [0, 1]
    assert log.windows("train", "other") == []
    assert "no model is called 'wm'" in exfm_cli("train", small, "--model", "fm", "--model", "wm").err


def test_jobs_without_a_terminal_say_where_they_are(small: str, tmp_path: Path, exfm_cli: Any) -> None:
    ran = exfm_cli("run", small)
    assert ran.status == 0 and "window 1 of 2" in ran.err and "rows/s, NE fm " in ran.err
    predicted = exfm_cli("predict", small, "--model", "vm", "--out", str(tmp_path / "vm.parquet"))
    assert predicted.status == 0 and "window 2 of 2" in predicted.err
    assert exfm_cli("train", small, "--model", "other").status == 0


def test_predict_takes_a_snapshot_and_a_time(small: str, tmp_path: Path, exfm_cli: Any) -> None:
    assert exfm_cli("run", small, "stream.window=12h").status == 0
    out = str(tmp_path / "vm.parquet")

    def predict(*more: str) -> Any:
        return exfm_cli("predict", small, "stream.window=12h", "--model", "vm", "--out", out, *more)

    everything, newest = predict(), pq.read_table(out)
    assert newest.num_rows == 240 and "snapshot 3, " in everything.out
    assert "snapshot 2, trained until 2026-01-02 12:00 UTC" in predict("--snapshot", "2").out
    older = pq.read_table(out)
    assert older.column("example_id").equals(newest.column("example_id"))
    assert not older.column("prediction_click").equals(newest.column("prediction_click"))
    assert predict("--snapshot", "latest", "--from", "2026-01-01T18:00", "--to", "2026-01-02T07:30:00Z").status == 0
    predictions = pq.read_table(out)
    times = newest.column("event_time")
    first, end = datetime(2026, 1, 1, 18, tzinfo=UTC), datetime(2026, 1, 2, 7, 30, tzinfo=UTC)
    expected_rows = newest.filter(pc.and_(pc.greater_equal(times, first), pc.less(times, end)))
    assert 0 < predictions.num_rows < 240
    assert predictions.drop_columns("prediction_click").equals(expected_rows.drop_columns("prediction_click"))
    # The batches have other sizes, and a matrix product rounds by its size.
    predicted, expected = (table.column("prediction_click").to_numpy() for table in (predictions, expected_rows))
    assert predicted == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--snapshot", "7"], "there is no snapshot 7 of 'fm', or no longer; there are: 0, 1"),
        (["--snapshot", "newest"], "write the number of a snapshot, or latest; given: 'newest'"),
        (["--from", "yesterday"], "--from: write a time such as 2026-01-31"),
        (["--from", "2026-01-02", "--to", "2026-01-01"], "the end must come after the start"),
        (["--from", "2027-01-01"], "it goes from 2026-01-01T00:00:00Z to 2026-01-03T00:00:00Z"),
    ],
)
def test_a_snapshot_or_a_time_that_is_not_there(arguments: Any, words: str, trained: str, exfm_cli: Any) -> None:
    outcome = exfm_cli("predict", trained, "--model", "fm", "--out", "unused.parquet", *arguments)
    assert outcome.status == 2 and words in outcome.err and not Path("unused.parquet").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(TRAINED.format(folder=folder), encoding="utf-8")
    exfm.run(exfm.load_experiment(str(folder / "small.yaml")))
    return str(folder / "small.yaml")


def parquet(experiment: dict[str, Any], path: Path, **fields: Any) -> dict[str, Any]:
    """The experiment on Parquet files."""
    label, feature = {"name": "click"}, {"name": "user_id", "kind": "categorical", "rows": 64}
    source = {
        "name": "parquet",
        "path": str(path),
        "time_unit": "us",
        "labels": [label],
        "features": [feature],
        **fields,
    }
    model = {"fm": {"backbone": {"name": "mlp"}}}
    return experiment | {"stream": {"source": source, "window": "1d"}, "models": model, "run_dir": str(path / "run")}


def test_validate_says_that_the_data_are_not_there(
    experiment: dict[str, Any], write: Any, tmp_path: Path, exfm_cli: Any
) -> None:
    file = write(parquet(experiment, tmp_path / "nowhere"))
    outcome = exfm_cli("validate", file)
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith(f"error: {file}: stream.source: ") and "nowhere" in outcome.err
    assert outcome.err.count("\n") == 1
    assert exfm_cli("validate", "--no-data", file).out == f"{file}: ok: fm\n"


def test_an_error_of_a_source_is_the_users_input(
    experiment: dict[str, Any], write: Any, tmp_path: Path, exfm_cli: Any
) -> None:
    absent = exfm_cli("run", write(parquet(experiment, tmp_path / "nowhere")))
    assert absent.status == 2 and absent.err.splitlines()[-1].startswith("error: stream.source: ")
    rows = {"example_id": [1, 2], "event_time": [0, 1], "click": [0, 1], "user": [1, 2]}
    (tmp_path / "log").mkdir()
    pq.write_table(pa.table(rows), tmp_path / "log" / "a.parquet")
    lacking = exfm_cli("run", write(parquet(experiment, tmp_path / "log")))
    assert lacking.status == 2 and "stream.source: " in lacking.err and "'user_id'" in lacking.err
    assert "Traceback" not in lacking.err and "ValueError" not in lacking.err


FOLDERS = [
    (["run", "FILE", "run_dir=LOG"], "LOG: the folder cannot be used: Not a directory"),
    (["run", "FILE", "run_dir=LOG/x"], "LOG/x: the folder cannot be used: Not a directory"),
    (["run", "FILE", "run_dir=nowhere://x"], "nowhere://x: the folder cannot be used: Protocol not known"),
    (["predict", "FILE", "--model", "fm", "--out", "LOG/p.parquet"], "LOG: the folder cannot be made: File exists"),
    (["predict", "FILE", "--model", "fm", "--out", "RUN"], "is a folder; name the Parquet file"),
    (["export", "FILE", "--model", "fm", "--out", "nowhere://x"], "nowhere://x: the folder cannot be used"),
    (["report", "nowhere://x"], "nowhere://x: the folder cannot be used"),
    (["log", "RUN", "--tensorboard", "LOG"], "--tensorboard: LOG/small/fm: the folder cannot be made"),
    (["log", "RUN", "--mlflow", "LOG"], "--mlflow: LOG: "),
]


@pytest.mark.parametrize(("arguments", "words"), FOLDERS)
def test_a_folder_that_cannot_be_is_the_users_slip(
    arguments: list[str], words: str, trained: str, tmp_path: Path, exfm_cli: Any
) -> None:
    if "--mlflow" in arguments or "--tensorboard" in arguments:
        pytest.importorskip(arguments[2].lstrip("-"))
    paths = {"FILE": trained, "RUN": str(Path(trained).parent / "run"), "LOG": str(tmp_path / "log.txt")}
    Path(paths["LOG"]).touch()

    def placed(text: str) -> str:
        for name, path in paths.items():
            text = text.replace(name, path)
        return text

    outcome = exfm_cli(*map(placed, arguments))
    assert outcome.status == 2 and outcome.out == ""
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ") and placed(words) in last
