"""What cannot be of a kind of label is refused, with the task, the kind and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
import yaml

import exfm
from exfm.config.checks import Arm
from exfm.data.validation import RowChecker
from exfm.schema import FeatureSchema, Label
from exfm.transfer.build import check_models
from tests.training.labelled_logs import ACTION, WATCH, labelled_experiment, labelled_log
from tests.training.logs import load, write_log


class Mimic(exfm.DistillationStrategy):
    """A strategy of before there were kinds."""

    name: ClassVar[str] = "mimic"

    def loss(self, student: Any, teacher: Any, labels: Any) -> Any:
        """Is never called."""
        raise NotImplementedError


@pytest.fixture(scope="module")
def config(tmp_path_factory: Any) -> dict[str, Any]:
    """An experiment of all kinds of label, which is not run."""
    folder = tmp_path_factory.mktemp("refused")
    return labelled_experiment(write_log(folder / "log", labelled_log(30)), str(folder / "run"), WATCH, ACTION)


def transfer(**fields: Any) -> dict[str, Any]:
    return {"vm": {"transfer": [{"teacher": "fm", **fields}]}}


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ({"vm": {"heads": {"wach": {"name": "mse"}}}}, r"models\.vm\.heads: the model predicts no task 'wach'.*watch"),
        (
            {"vm": {"heads": {"click": {"name": "mse"}}}},
            r"heads\.click: mse learns regression labels, and click is binary; .*a binary label needs none",
        ),
        (
            {"vm": {"heads": {"watch": {"name": "softmax"}}}},
            r"heads\.watch: softmax learns multiclass labels, and watch is regression; .*bins, huber, log_normal, mse",
        ),
        (
            transfer(name="direct", temperature=2),
            r"models\.vm\.transfer\.0: direct: temperature: 2\.0: the task watch has a regression label, and it is "
            r"defined for binary labels alone; name the others under tasks, such as {click: click}",
        ),
        (transfer(name="auxiliary_head", label_scale="auto"), "label_scale: auto: the task watch has a regression"),
        (transfer(name="student_adapter", input="probability"), "input: probability: the task watch has a regression"),
        (
            {"vm": {"heads": {"watch": {"name": "log_normal"}}, **transfer(name="student_adapter")["vm"]}},
            "student_adapter: the task watch has the head log_normal, whose outputs a prediction does not decide",
        ),
        (transfer(name="direct", tasks={"click": "watch"}), "click is binary, and 'fm' predicts watch as regression"),
        (
            transfer(name="mimic"),
            r"mimic: the task watch has a regression label, and it is defined for binary labels alone; name the others",
        ),
        (
            {"fm": {"tasks": ["watch"], "supervision": {"states": {"user": ["user"]}}}, "vm": {"transfer": []}},
            "states and embedding_dim are learned from binary labels, and watch are not",
        ),
    ],
)
def test_models_that_cannot_learn_their_labels(
    tmp_path: Path, config: dict[str, Any], models: dict[str, Any], message: str
) -> None:
    sections = {name: {**section, **models.get(name, {})} for name, section in config["models"].items()}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({**config, "models": sections}))
    with pytest.raises(exfm.ConfigError, match=message):
        check_models(exfm.load_experiment(str(path), components=[Mimic]))


def test_a_strategy_of_binary_labels_teaches_those_that_are_named(tmp_path: Path, config: dict[str, Any]) -> None:
    section = {**config["models"]["vm"], "transfer": [{"name": "mimic", "teacher": "fm", "tasks": {"click": "click"}}]}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({**config, "models": {**config["models"], "vm": section}}))
    experiment = exfm.load_experiment(str(path), components=[Mimic])
    check_models(experiment)
    arms: dict[str, Arm] = {arm.name: arm for arm in experiment.arms}
    assert {task: spec.name for task, spec in arms["vm"].config.heads.items()} == {"watch": "mse", "action": "softmax"}
    assert experiment.as_dict()["models"]["vm"]["heads"]["watch"] == {"name": "mse", "scale": None}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        (
            {"watch": {"column": "p", "kind": "logit"}},
            r"watch\.kind: watch has a regression label, .* value; given",
        ),
        (
            {"click": {"column": "p", "kind": "value"}},
            r"click\.kind: .*binary label, .*probability or logit; given",
        ),
        (
            {"action": {"column": "p", "kind": "probability"}},
            r"action has a multiclass label, of which a column",
        ),
    ],
)
def test_predictions_from_elsewhere_are_on_the_labels_scale(
    tmp_path: Path, config: dict[str, Any], predictions: dict[str, Any], message: str
) -> None:
    teachers = {"vendor": {"path": str(tmp_path), "predictions": predictions}}
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, {**config, "teachers": teachers})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "multiclass"}, "label 'y' is multiclass, with no classes"),
        ({"kind": "regression", "classes": 3}, "is regression, with classes: 3"),
        ({"minimum": 0}, "is binary: minimum: 0 is of regression labels"),
        ({"kind": "regression", "sampling_rate": 0.5}, "sampling_rate counts the negatives of a binary label"),
        ({"kind": "multiclass", "classes": 3, "oracle": "p"}, "a single column 'p' holds no truth of it"),
    ],
)
def test_a_label_is_of_a_kind(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Label(name="y", **fields)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "watch",
            float("inf"),
            "watch: a regression label is a finite number, or null where it is not known; given: inf",
        ),
        ("watch", 1e300, "watch: a regression label is a finite number"),
        ("watch", -0.5, "watch: the label has minimum: 0; given: -0.5"),
        (
            "action",
            4,
            "action: a multiclass label is a whole number from 0 to 3, or null .*; given: 4",
        ),
        ("action", 1.5, "action: a multiclass label is a whole number from 0 to 3"),
    ],
)
def test_bad_labels_are_named(config: dict[str, Any], column: str, value: float, message: str) -> None:
    log = labelled_log(30, unknown=0)
    values = log.column(column).to_pylist()
    values[7] = value
    log = log.set_column(log.column_names.index(column), column, pa.array(values, pa.float64()))
    source = config["stream"]["source"]
    schema = FeatureSchema.model_validate({key: source[key] for key in ("group", "labels", "features")})
    with pytest.raises(exfm.ConfigError, match=f"row 7: {message}"):
        RowChecker(schema, skip=False, newest_us=0).check(log.combine_chunks().to_batches()[0])
