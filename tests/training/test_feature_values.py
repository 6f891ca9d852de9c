"""A run over a log with nulls, vectors, weighted lists, buckets, crosses and UUIDs: resumed, predicted and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
import exfm.serving
from exfm.interfaces.layout import Cluster
from exfm.planning.cluster_plan import as_dict, plan
from exfm.serving.export import Form, export
from exfm.serving.predict import predict
from tests.training.interruption import run_interrupted
from tests.training.logs import differences, experiment_dict, load, make_log, predictions, stream_rows, train, write_log

ROWS = 300
NEW: list[dict[str, Any]] = [
    {"name": "device", "kind": "categorical", "rows": 32},
    {"name": "tags", "kind": "multi_valued", "rows": 16, "weights": "tag_weights"},
    {"name": "text", "kind": "vector", "width": 4},
    {"name": "price_range", "kind": "bucketized", "column": "price", "boundaries": [1, 3, 5]},
    {"name": "user_price", "kind": "crossed", "of": ["user", "price_range"], "rows": 64},
]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    random = np.random.default_rng(3)
    table = make_log(ROWS)
    price = pa.array(table["price"].to_numpy(), mask=random.random(ROWS) < 0.3)
    tags = [random.integers(0, 9, length).tolist() for length in random.integers(0, 4, ROWS)]
    texts = [None if number % 5 == 0 else random.normal(size=4).tolist() for number in range(ROWS)]
    columns = {
        "device": pa.array(
            [None if number % 7 == 0 else UUID(int=int(number) << 90) for number in table["user"].to_numpy()]
        ),
        "tags": pa.array(tags, pa.list_(pa.int64())),
        "tag_weights": pa.array([random.integers(0, 3, len(ids)).tolist() for ids in tags], pa.list_(pa.int64())),
        "text": pa.array(texts, pa.list_(pa.float16(), 4)),
    }
    table = table.set_column(table.schema.get_field_index("price"), "price", price)
    for name, column in columns.items():
        table = table.append_column(name, column)
    return write_log(tmp_path_factory.mktemp("log"), table)


def config_of(log: str, run_dir: Path) -> dict[str, Any]:
    """A teacher of everything, and a student that sees a cross without the features that it crosses."""
    config = experiment_dict(log, str(run_dir))
    config["stream"]["window"] = "3d"
    source = config["stream"]["source"]
    source["features"][2]["missing"] = "mean"
    source["features"] += NEW
    config["models"]["fm"] |= {"backbone": {"name": "mlp"}, "sequence_encoder": None}
    config["models"]["fm"]["supervision"] = {"states": {"user": ["user", "device", "tags", "text", "user_price"]}}
    config["models"]["vm"] |= {"features": ["item", "price", "user_price"], "control": False}
    return config


@pytest.fixture(scope="module")
def run(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[exfm.Experiment, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("run")
    experiment = load(folder, config_of(log, folder / "run"))
    return experiment, exfm.run(experiment)


def test_a_run_goes_on_as_if_it_had_not_stopped(
    run: tuple[exfm.Experiment, dict[str, Any]], log: str, tmp_path: Path
) -> None:
    interrupted = run_interrupted(load(tmp_path, config_of(log, tmp_path / "run")), stop_after=3)
    assert differences(interrupted, run[1]) == []


def test_predictions_and_exports_agree(run: tuple[exfm.Experiment, dict[str, Any]], tmp_path: Path) -> None:
    experiment = run[0]
    predict(experiment, "fm", str(tmp_path / "predicted.parquet"))
    expected = pq.read_table(tmp_path / "predicted.parquet")["prediction_click"].to_numpy()
    export(experiment, "fm", str(tmp_path / "out"), Form(compiled=False), compute_figures=False)
    loaded = exfm.serving.load(str(tmp_path / "out"))
    rows = stream_rows(experiment).combine_chunks()
    for form in (rows.to_batches()[0], rows.to_pylist()):
        np.testing.assert_allclose(loaded.predict(form)["click"], expected, rtol=0, atol=1e-6)
    card = (tmp_path / "out" / "MODEL_CARD.md").read_text()
    assert "| user_price | crossed | `user, price` | 64 | |" in card
    assert "| tags | multi_valued | `tags, tag_weights` | 16 | |" in card
    assert "| text | vector of 4 | `text` | | |" in card


def test_a_model_that_reads_none_of_it_is_as_before(
    run: tuple[exfm.Experiment, dict[str, Any]], log: str, tmp_path: Path
) -> None:
    """The same predictions, bit for bit, in a stream with weighted lists and in one without."""
    plain, rich = (experiment_dict(log, str(tmp_path / name)) for name in ("plain", "rich"))
    rich["stream"]["source"]["features"] += NEW
    for config in (plain, rich):
        del config["stream"]["source"]["features"][2]  # it has nulls
        config["stream"]["window"] = "3d"
        config["models"] = {"fm": config["models"]["fm"] | {"features": ["user", "item", "history"]}}
        train(load(tmp_path, config))
    assert predictions(str(tmp_path / "plain"), "fm") == predictions(str(tmp_path / "rich"), "fm")


def test_new_features_join_a_model_that_has_learned(log: str, tmp_path: Path) -> None:
    """A number that may be missing is at first the mean, and a vector has no effect."""
    config = config_of(log, tmp_path / "run")
    parent = {"backbone": {"name": "mlp"}, "embedding_dim": 8, "batch_size": 32, "features": ["user", "item"]}
    child = parent | {
        "features": ["user", "item", "price", "text"],
        "init_from": {"run": str(tmp_path / "run"), "model": "parent"},
        "start": "2023-11-18T00:00:00Z",
    }
    config["models"] = {"parent": parent}
    train(load(tmp_path, config))
    config |= {"models": {"child": child}, "run_dir": str(tmp_path / "child")}
    train(load(tmp_path, config))
    (window, rows), *_ = predictions(str(tmp_path / "child"), "child").items()
    expected = predictions(str(tmp_path / "run"), "parent")[window]
    actual, before = (table["prediction_click"].to_numpy() for table in (rows, expected))
    np.testing.assert_allclose(actual[:16], before[:16], rtol=0, atol=1e-6)
    assert np.abs(actual[32:] - before[32:]).max() > 1e-3, "and then it learns from them"


def test_a_plan_counts_the_new_inputs(log: str, tmp_path: Path) -> None:
    """Tables and projections of each feature, and a number of 32 bits for each id where ids have weights."""
    config = config_of(log, tmp_path / "run")
    del config["models"]["vm"], config["models"]["fm"]["supervision"]
    config |= {"parallel": {"name": "ddp"}}
    with_all = as_dict(plan(load(tmp_path, config), Cluster(2, 2, 10**9, None)))["models"]["fm"]
    config["models"]["fm"]["features"] = ["user", "item", "price", "history", "device", "price_range", "user_price"]
    without = as_dict(plan(load(tmp_path, config), Cluster(2, 2, 10**9, None)))["models"]["fm"]
    dim = config["models"]["fm"]["embedding_dim"]
    assert with_all["parameters"]["sparse"] - without["parameters"]["sparse"] == 16 * dim
    assert with_all["parameters"]["sparse"] == dim * (64 + 64 + 32 + 16 + 5 + 64)
    assert [table["table"] for table in with_all["tables"] if "tags" in table["table"]] == ["tags"]
