"""`exfm init`: the file that it writes validates and runs, names planted faults, and leaves leaks out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
from exfm.inspection.log import read_log
from exfm.inspection.sample import read_sample
from tests.conftest import Outcome
from tests.inspection.logs import wide_log, write
from tests.training.logs import DAY_US, START_US, make_log, write_log

Cli = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(exfm_cli: Cli, path: str) -> tuple[exfm.Experiment, Outcome, str]:
    """Writes an experiment over a log, and loads it."""
    done = exfm_cli("init", path, "--out", "mine.yaml")
    assert done.status == 0, done.err
    text = Path("mine.yaml").read_text(encoding="utf-8")
    return exfm.load_experiment("mine.yaml"), done, text


def by_name(experiment: exfm.Experiment) -> dict[str, Any]:
    return {feature.name: feature for feature in experiment.schema.features}


def test_a_log_is_drafted_and_runs(exfm_cli: Cli, folder: Path) -> None:
    experiment, done, _ = init(exfm_cli, write_log(folder / "log", make_log()))
    schema = experiment.schema
    assert (schema.example_id, schema.event_time, schema.group) == ("example_id", "event_time", "user")
    assert schema.tasks == ("click", "buy")
    features = by_name(experiment)
    assert {name: feature.kind for name, feature in features.items()} == {
        "user": "categorical",
        "item": "categorical",
        "price": "dense",
        "history": "sequence",
    }
    # 30 items and 40 users, with room for more; the history has the items' table.
    assert schema.tables() == {"user": 64, "item": 64}
    assert experiment.config.stream.window.total_seconds() == 6 * 3600
    assert [arm.name for arm in experiment.arms] == ["fm", "vm", "vm.control"]
    assert "exfm run mine.yaml --windows 2" in done.out
    assert exfm_cli("validate", "mine.yaml").status == 0
    results = exfm.run(experiment, windows=2)
    assert results["models"]["vm"]["examples"] > 0
    assert results["gains"]


@pytest.fixture
def wide(exfm_cli: Cli, folder: Path) -> tuple[exfm.Experiment, Outcome, str]:
    return init(exfm_cli, write(folder / "wide", wide_log()))


def test_a_wide_log_runs(wide: tuple[exfm.Experiment, Outcome, str]) -> None:
    results = exfm.run(wide[0], windows=2)
    assert results["time"]["stopped"] and results["data"]["skipped_rows"] == 0


def test_columns_get_their_kinds(wide: tuple[exfm.Experiment, Outcome, str]) -> None:
    experiment = wide[0]
    schema, features = experiment.schema, by_name(wide[0])
    assert (schema.example_id, schema.group, schema.tasks) == ("impression id", "user_id", ("click", "bought"))
    for name in ("user_id", "item", "seller", "category", "country", "is_mobile"):
        assert features[name].kind == "categorical", name
    assert (features["price"].transform, features["score"].transform) == ("log1p", "none")
    assert (features["margin"].missing, features["score"].missing) == ("mean", None)
    assert features["tags"].kind == "multi_valued"
    assert (features["title_embedding"].kind, features["title_embedding"].width) == ("vector", 3)
    history = features["history"]
    assert [(field.source_column, field.kind) for field in history.fields] == [
        ("history_items", "categorical"),
        ("history_age_s", "dense"),
    ]
    assert history.table_name(history.fields[0]) == "item"
    assert (history.times.column, history.times.holds, history.times.unit) == ("history_age_s", "age", "s")
    states = experiment.config.models["fm"].supervision.states
    assert set(states["user_id"]) == {"user_id", "country", "history"}
    assert set(states["item"]) == {"item", "seller", "category"}


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("dwell_seconds", "where click is 0 all of its values are equal"),
        ("version", "constant"),
        ("empty", "constant"),
        ("margin", "33.4% of rows have no value"),
        ("country", "of rows have no value"),
        ("is_mobile", "is it a label"),
    ],
)
def test_planted_faults_are_named(wide: tuple[exfm.Experiment, Outcome, str], column: str, words: str) -> None:
    _, done, text = wide
    warnings = [line.partition(": ")[2] for line in done.err.splitlines() if line.startswith("warning: ")]
    assert [line for line in warnings if line.startswith(f"{column}: ") and words in line], done.err
    # The file has the same warnings, as comments.
    for line in warnings:
        assert f"# - {line}\n" in text


@pytest.mark.parametrize(
    "column", ["logged", "dwell_seconds", "version", "empty", "vector", "nested"]
)  # fmt: skip
def test_a_column_that_is_left_out_has_a_reason(wide: tuple[exfm.Experiment, Outcome, str], column: str) -> None:
    experiment, _, text = wide
    assert column not in experiment.schema.columns
    assert f"\n      # {column}: " in text


@pytest.mark.parametrize(
    ("unit", "per_second"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 1_000_000_000)]
)  # fmt: skip
@pytest.mark.parametrize("is_timestamp", [True, False])
def test_times_of_every_unit(exfm_cli: Cli, folder: Path, unit: str, per_second: int, is_timestamp: bool) -> None:
    table = make_log(400)
    seconds = table["event_time"].cast("int64").to_numpy() // 1_000_000
    times = pa.array(seconds * per_second, pa.timestamp(unit, "UTC") if is_timestamp else pa.int64())
    position = table.schema.get_field_index("event_time")
    experiment, _, text = init(exfm_cli, write_log(folder / "log", table.set_column(position, "when", times)))
    assert experiment.schema.event_time == "when"
    assert f"    time_unit: {unit}\n" in text if not is_timestamp else "time_unit" not in text
    span = experiment.source.time_range()
    assert span.start_us == int(seconds.min()) * 1_000_000
    assert experiment.config.stream.window.total_seconds() == 6 * 3600


def test_rows_without_an_id_are_numbered(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(1_500)
    # Row numbers that restart in every file name no example.
    columns["impression_id"] = pa.array(np.arange(1_500) % 900)
    del columns["impression id"]
    experiment, done, _ = init(exfm_cli, write(folder / "log", columns))
    assert experiment.schema.example_id not in columns
    assert "impression_id: it names no example" in done.err
    assert exfm.run(experiment, windows=2)["data"]["skipped_rows"] == 0


def test_clocks_that_are_wrong_are_named(exfm_cli: Cli, folder: Path) -> None:
    table = make_log(900)
    time_us = table["event_time"].cast("int64").to_numpy().copy()
    time_us[:3] = 5
    time_us[-1] = START_US + 100_000 * DAY_US
    time_us[450:-1] += 90 * DAY_US
    position = table.schema.get_field_index("event_time")
    times = pa.array(time_us, pa.timestamp("us", "UTC"))
    experiment, done, _ = init(exfm_cli, write_log(folder / "log", table.set_column(position, "event_time", times)))
    for words in ("0.33% of rows lie before 2000", "0.11% of rows lie after tomorrow", "no row for"):
        assert words in done.err
    # Windows are those of the usual rows, and the stream begins with them.
    assert experiment.config.stream.window.days in (2, 7)
    assert exfm.run(experiment, windows=1)["models"]["fm"]["examples"] > 0


def test_a_glob_of_dated_folders_has_a_name(exfm_cli: Cli, folder: Path) -> None:
    write_log(folder / "2024-03" / "dt=01", make_log(300))
    done = exfm_cli("init", str(folder / "2024-03" / "*" / "part-*.parquet"))
    assert done.status == 0 and "dt: columns in the folders' names" in done.err
    assert exfm.load_experiment("log-2024-03.yaml").config.name == "log-2024-03"


def test_an_old_log_is_not_cut(exfm_cli: Cli, folder: Path) -> None:
    table = make_log(600)
    times = pa.array(table["event_time"].cast("int64").to_numpy() - 9_000 * DAY_US, pa.timestamp("us", "UTC"))
    position = table.schema.get_field_index("event_time")
    experiment, done, _ = init(exfm_cli, write_log(folder / "log", table.set_column(position, "event_time", times)))
    assert "100.00% of rows lie before 2000" in done.err and experiment.config.stream.start is None
    assert experiment.config.stream.window.total_seconds() == 6 * 3600


def test_a_history_that_knows_the_future_is_left_out(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(600)
    shown = columns["shown_at"].to_pylist()
    columns["history_time"] = pa.array(
        [[time + 60_000] * len(items) for time, items in zip(shown, columns["history_items"].to_pylist(), strict=True)],
        pa.list_(pa.int64()),
    )
    experiment, done, _ = init(exfm_cli, write(folder / "log", columns))
    assert "history_time" in done.err and "knows the future" in done.err
    assert "history_items" not in experiment.schema.columns


def test_a_feature_that_ranks_the_label_is_left_out(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(2_000)
    click = columns["click"].cast("int8").to_numpy()
    random = np.random.default_rng(1)
    columns["copy"] = pa.array(click + random.normal(0, 0.15, click.size))
    columns["code"] = pa.array([f"{2 * (n % 20) + value}" for n, value in enumerate(click)])
    # A feature that is merely good stays, as do ids that occur once each.
    columns["hint"] = pa.array(click + random.normal(0, 1.0, click.size))
    experiment, done, _ = init(exfm_cli, write(folder / "log", columns))
    leaky = {line.split(": ")[1] for line in done.err.splitlines() if "leaky" in line}
    assert leaky == {"copy", "code", "dwell_seconds"}
    assert {"copy", "code"}.isdisjoint(experiment.schema.columns) and "hint" in experiment.schema.columns


def test_numbers_that_are_there_where_no_label_is_are_no_leak(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(600)
    even = np.arange(600) % 2 == 0
    columns["click"] = pa.array(columns["click"].cast("int8").to_numpy(), mask=even)
    columns["apart"] = pa.array(np.arange(600) / 7, mask=~even)
    _, done, _ = init(exfm_cli, write(folder / "log", columns))
    assert not any("apart" in line and "leaky" in line for line in done.err.splitlines())


def test_types_that_differ_by_file(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(600)
    path = write(folder / "log", columns, files=1)
    second = dict(columns)
    second["impression id"] = pa.array([f"j{number}" for number in range(600)])
    second["item"] = columns["item"].cast("int64")  # another width is no difference
    second["score"] = columns["score"].cast("string")
    del second["tags"]
    write(folder / "log" / "more", second, files=1)
    experiment, _, text = init(exfm_cli, path)
    assert "\n      # score: its type differs from file to file: number and string" in text
    assert {"item", "tags"} <= set(by_name(experiment)) and "score" not in experiment.schema.columns


def test_odd_names_are_quoted(exfm_cli: Cli, folder: Path) -> None:
    columns = wide_log(600)
    columns["yes"] = columns.pop("category")
    columns["a: b #1"] = columns.pop("country")
    columns["a.b"] = columns.pop("score")
    experiment, _, _ = init(exfm_cli, write(folder / "log", columns))
    features = by_name(experiment)
    assert features["yes"].source_column == "yes" and features["a__b__1"].source_column == "a: b #1"
    assert exfm.run(experiment, windows=1)["data"]["skipped_rows"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shown_at": None, "logged": None}, "no column is the time of a row"),
        ({"click": None, "bought": None, "is_mobile": None}, "Columns of few values: category (c0, c1"),
    ],
)
def test_a_log_without_time_or_label(
    exfm_cli: Cli, folder: Path, change: dict[str, Any], words: str
) -> None:  # fmt: skip
    columns = {name: values for name, values in wide_log(300).items() if name not in change}
    columns["time_text"] = pa.array(["2024-01-01"] * 300)
    done = exfm_cli("init", write(folder / "log", columns))
    assert done.status == 2 and words in done.err
    assert ("time_text (string)" in done.err) == ("shown_at" in change)
    assert not list(folder.glob("*.yaml"))


def test_paths_that_cannot_be_read(exfm_cli: Cli, folder: Path) -> None:
    (folder / "log.csv").write_text("a,b\n1,2\n")
    (folder / "bad.parquet").write_text("no Parquet")
    (folder / "empty").mkdir()
    for path, words in (
        ("log.csv", "a .csv file is none"),
        ("bad.parquet", "cannot be read as Parquet"),
        ("empty", "no file that ends in .parquet"),
        ("nowhere", "no file, folder or glob"),
    ):
        done = exfm_cli("init", path)
        assert done.status == 2 and words in done.err, done.err
    path = write_log(folder / "log", make_log(300))
    (folder / "log.yaml").write_text("kept")
    done = exfm_cli("init", path)
    assert done.status == 2 and "exists already" in done.err
    assert (folder / "log.yaml").read_text() == "kept"


def test_a_password_in_the_path_is_not_written(exfm_cli: Cli, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = read_log(write_log(folder / "log", make_log(200)))
    path = "s3://user:geheim@bucket/log"
    monkeypatch.setattr("exfm.inspection.log.read_log", lambda _: replace(log, url=path))
    monkeypatch.setattr("exfm.inspection.sample.read_sample", lambda _: read_sample(log))
    outcome = exfm_cli("init", path, "--out", str(folder / "log.yaml"))
    assert outcome.status == 0 and "geheim" not in outcome.err
    assert "put ${oc.env:NAME} for each ***" in outcome.err
    text = (folder / "log.yaml").read_text()
    assert "geheim" not in text and "@bucket/log" in text
