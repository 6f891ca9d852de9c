"""A model starts from another: tensors that fit are taken, all others start anew, and no label leaks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch

import exfm
from tests.training.logs import experiment_dict, load, make_log, predictions, train, write_log

ROWS = 600
BATCH = 32


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


def parent_only(log: str, run_dir: str) -> dict[str, Any]:
    """An experiment of a single model, whose backbone reads its tokens side by side."""
    config = experiment_dict(log, run_dir, labels=("click", "buy"))
    parent = {
        "backbone": {"name": "mlp"},
        "features": ["user", "price"],
        "tasks": ["click"],
        "embedding_dim": 8,
        "batch_size": BATCH,
        "optimizer": {"dense": {"name": "sgd"}},
    }
    config["models"] = {"parent": parent}
    return config


@pytest.fixture(scope="module")
def trained(log: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a run whose parent has trained on the whole log, snapshots of all windows included."""
    folder = tmp_path_factory.mktemp("trained")
    run_dir = str(folder / "run")
    train(load(folder, parent_only(log, run_dir)))
    return run_dir


def child(log: str, run_dir: str, parent_dir: str, **fields: Any) -> dict[str, Any]:
    """An experiment of a single model that starts from the parent in another folder."""
    config = parent_only(log, run_dir)
    model = config["models"].pop("parent")
    config["models"]["child"] = model | {
        "init_from": {"run": parent_dir, "model": "parent"},
        "start": "2023-11-20T00:00:00Z",
        **fields,
    }
    return config


def first_predictions(run_dir: str, model: str, window: int) -> np.ndarray[Any, Any]:
    """Returns a model's predictions of the first batch of a window."""
    column = predictions(run_dir, model)[window].column("prediction_click")
    return np.asarray(column.to_numpy()[: BATCH // 2])


def test_an_equal_model_goes_on_as_its_parent(log: str, trained: str, tmp_path: Path) -> None:
    results = exfm.run(load(tmp_path, child(log, str(tmp_path / "run"), trained)))
    # Plain SGD has no state, and that of the tables comes along: the whole window is equal to the bit.
    assert predictions(str(tmp_path / "run"), "child") == {5: predictions(trained, "parent")[5]}
    taken = results["models"]["child"]["init_from"]
    assert taken["loaded"] and not taken["grown"] and not taken["new"] and not taken["left"]
    assert results["notes"][0].startswith(f"child: started from parent of {trained} at 2023-11-20T00:00:00Z; tensors: ")


def test_a_new_feature_a_larger_table_and_another_head_change_no_first_prediction(
    log: str, trained: str, tmp_path: Path
) -> None:
    config = child(log, str(tmp_path / "run"), trained, features=["user", "item", "price"], tasks=["click", "buy"])
    config["stream"]["source"]["features"][0]["rows"] = 128
    results = exfm.run(load(tmp_path, config))
    actual = first_predictions(str(tmp_path / "run"), "child", 5)
    np.testing.assert_allclose(actual, first_predictions(trained, "parent", 5), rtol=0, atol=1e-6)
    taken = results["models"]["child"]["init_from"]
    assert any("table_user" in name for name in taken["grown"])
    assert {name.split(".")[0] for name in taken["new"]} == {"featurizer", "heads"}
    assert any("table_item" in name for name in taken["new"]) and any("task_buy" in name for name in taken["new"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"embedding_dim": 4}, r"has the shape \[64, 4\] here and \[64, 8\] in .*fresh: \["),
        ({"head_hidden": [4]}, r"heads\.task_click\.0\.\w+ has the shape .*fresh: \[heads\.task_click\]"),
        (
            {"start": "2023-11-15T00:00:00Z"},
            r"has trained on later examples, whose labels the model would know before it predicts",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_training(
    fields: dict[str, Any], message: str, log: str, trained: str, tmp_path: Path
) -> None:
    config = child(log, str(tmp_path / "run"), trained, **fields)
    with pytest.raises(exfm.ConfigError, match=message):
        exfm.run(load(tmp_path, config))
    assert not list((tmp_path / "run").glob("commits/*/*/*.json"))


def test_a_parent_that_is_not_there_is_named(log: str, trained: str, tmp_path: Path) -> None:
    config = child(log, str(tmp_path / "run"), trained)
    config["models"]["child"]["init_from"]["model"] = "parents"
    with pytest.raises(exfm.ConfigError, match=r"models\.child\.init_from.*no model 'parents'. Did you mean 'parent'"):
        load(tmp_path, config)


def test_weights_that_would_read_a_new_table_are_refused(log: str, tmp_path: Path) -> None:
    parent = parent_only(log, str(tmp_path / "parent"))
    parent["models"]["parent"] |= {"backbone": {"name": "dlrm"}}
    train(load(tmp_path, parent))
    config = child(log, str(tmp_path / "run"), str(tmp_path / "parent"), features=["user", "item", "price"])
    config["models"]["child"]["backbone"] = {"name": "dlrm"}
    with pytest.raises(exfm.ConfigError, match=r"backbone\.top\.0\.weight has the shape .*fresh: \[backbone\]"):
        exfm.run(load(tmp_path, config))
    config["models"]["child"]["init_from"]["fresh"] = ["backbone"]
    results = exfm.run(load(tmp_path, config))
    assert any(name.startswith("backbone.") for name in results["models"]["child"]["init_from"]["new"])


def test_without_a_start_a_model_stands_where_its_parent_stands(log: str, trained: str, tmp_path: Path) -> None:
    config = parent_only(log, str(tmp_path / "run"))
    half = copy.deepcopy(config)
    half["stream"]["source"]["path"] = f"{log}/part-[01].parquet"
    train(load(tmp_path, half))
    windows = len(predictions(str(tmp_path / "run"), "parent"))
    assert 2 < windows < 6
    config["models"]["child"] = copy.deepcopy(config["models"]["parent"]) | {"init_from": {"model": "parent"}}
    train(load(tmp_path, config))
    assert min(predictions(str(tmp_path / "run"), "child")) in (windows - 1, windows)
    assert len(predictions(str(tmp_path / "run"), "parent")) == 6


def test_names_are_mapped_and_files_from_elsewhere_are_read(log: str, trained: str, tmp_path: Path) -> None:
    file = max(Path(trained, "snapshots", "parent").glob("*/model-*.safetensors"))
    renamed = {}
    for name, tensor in safetensors.torch.load_file(file).items():
        renamed[name.replace("table_user", "table_uid").replace("task_click", "task_ctr")] = tensor
    safetensors.torch.save_file(renamed, tmp_path / "elsewhere.safetensors")
    mapping = {"user": "uid", "click": "ctr"}
    origin = {"path": str(tmp_path / "elsewhere.safetensors"), "map": mapping}
    results = exfm.run(load(tmp_path, child(log, str(tmp_path / "run"), "", init_from=origin)))
    taken = results["models"]["child"]["init_from"]
    assert not taken["new"] and not taken["left"] and len(taken["loaded"]) == len(renamed)
    origin["map"] = {}
    results = exfm.run(load(tmp_path, child(log, str(tmp_path / "other"), "", init_from=origin)))
    taken = results["models"]["child"]["init_from"]
    assert any("table_user" in name for name in taken["new"]) and any("table_uid" in name for name in taken["left"])
