"""Runs students of every transfer strategy with their controls, on a log whose ids are strings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

import exfm
from exfm.serving.export import Form, export
from tests.training.logs import experiment_dict, load, make_log, write_log

STUDENTS: dict[str, dict[str, Any]] = {
    "ah": {"transfer": [{"name": "auxiliary_head", "teacher": "fm"}]},
    "sa": {"transfer": [{"name": "student_adapter", "teacher": "fm"}]},
    "direct": {"transfer": [{"name": "direct", "teacher": "fm"}]},
    "states": {"transfer": [{"name": "compact_features", "teacher": "fm"}]},
    "same": {"transfer": [{"name": "representation", "teacher": "fm"}]},
    "stack": {
        "transfer": [
            {"name": "auxiliary_head", "teacher": "fm"},
            {"name": "student_adapter", "teacher": "fm"},
            {"name": "compact_features", "teacher": "fm"},
            {"name": "representation", "teacher": "fm"},
            {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "added"}},
        ]
    },
    "parts": {"transfer": [{"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "added"}}]},
}


def served_experiment(path: str, run_dir: str) -> dict[str, Any]:
    config = experiment_dict(path, run_dir, labels=("click", "buy"))
    config["name"] = "served"
    config["stream"]["window"] = "3d"
    fm = config["models"]["fm"]
    states = {"user": ["user", "history"], "item": {"from": "representation"}}
    fm["supervision"] = {"states": states, "state_dim": 4, "embedding": "float16", "embedding_dim": 8}
    vm = {"backbone": {"name": "dlrm"}, "sequence_encoder": {"name": "mean"}, "embedding_dim": 8, "batch_size": 64}
    config["models"] = {"fm": fm}
    for name, fields in STUDENTS.items():
        student = {**vm, "features": ["user", "item", "price", "history"], **fields, "control": True}
        config["models"][name] = student
    config["models"]["ah"]["where"] = {"user": {"bucket": [0, 1], "of": 3}}
    return config


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> exfm.Experiment:
    """Runs the experiment."""
    folder = tmp_path_factory.mktemp("served")
    log = make_log(600)
    for column in ("user", "item"):
        names = pc.binary_join_element_wise(column, pc.cast(log[column], "string"), "-")
        log = log.set_column(log.schema.get_field_index(column), column, names)
    history = log["history"].combine_chunks()
    words = pc.binary_join_element_wise("item", pc.cast(history.values, "string"), "-")
    log = log.set_column(
        log.schema.get_field_index("history"), "history", type(history).from_arrays(history.offsets, words)
    )
    experiment = load(folder, served_experiment(write_log(folder / "log", log), str(folder / "run")))
    exfm.run(experiment)
    return experiment


FIRST = "1"
"""The snapshot that is exported with compiled programs."""


@pytest.fixture(scope="session")
def compiled(run: exfm.Experiment, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Exports an early snapshot with all programs; it is not written to again."""
    folder = str(tmp_path_factory.mktemp("compiled") / "out")
    export(run, "ah", folder, Form(compiled=True), at=FIRST, compute_figures=False)
    return folder


@pytest.fixture(scope="session")
def experiment_file(run: exfm.Experiment) -> str:
    """Returns the path of the experiment's file."""
    return str(Path(run.run_dir).parent / "served.yaml")
