"""Tests controls by name and compared pairs: the allowed ones, the trained arms, and the errors for wrong names."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

import exfm

Tree = dict[str, Any]


@pytest.fixture
def arms(experiment: Tree) -> Tree:
    """Two arms that differ in transfer, and a model of another kind on all traffic."""
    models = experiment["models"]
    models["second"] = {**copy.deepcopy(models["vm"]), "control": "vm.control"}
    models["alone"] = {"backbone": {"name": "dlrm"}, "features": ["user_id"], "tasks": ["click"]}
    return experiment


def test_a_named_control_is_not_trained_again(arms: Tree, write: Callable[..., str]) -> None:
    loaded = exfm.load_experiment(write(arms))
    controls = {arm.name: arm.control for arm in loaded.arms}
    assert controls == {"fm": None, "vm": "vm.control", "vm.control": None, "second": "vm.control", "alone": None}
    again = exfm.load_experiment(write(loaded.as_yaml(), "resolved.yaml"))
    assert {arm.name: arm.control for arm in again.arms} == controls


@pytest.mark.parametrize("control", ["alone", "fm", "second", "vm.control"])
def test_any_other_model_may_be_the_control(arms: Tree, write: Callable[..., str], control: str) -> None:
    arms["models"]["third"] = {**copy.deepcopy(arms["models"]["second"]), "control": control}
    loaded = exfm.load_experiment(write(arms))
    assert next(arm for arm in loaded.arms if arm.name == "third").control == control


@pytest.mark.parametrize(
    ("control", "words"),
    [
        (
            "vm.contro",
            "no model is called 'vm.contro'. Did you mean 'vm.control'? (one of: alone, fm, other, second, vm,",
        ),
        ("second.control", "no model is called 'second.control'. Did you mean"),
        ("fm.control", "no model is called 'fm.control'. Did you mean"),
        ("second", "'second' cannot be measured against itself"),
        ("other", "'second' predicts click, 'other' conversion: no task in common"),
        (["vm"], "must be true or false or text; given: ['vm']"),
        (0.5, "given: 0.5"),
    ],
)
def test_a_wrong_control_is_named(arms: Tree, write: Callable[..., str], control: Any, words: str) -> None:
    arms["models"]["second"] |= {"control": control, "tasks": ["click"]}
    arms["models"]["other"] = {"backbone": {"name": "dlrm"}, "tasks": ["conversion"]}
    path = write(arms)
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(path)
    assert str(error.value).startswith(f"{path}: models.second.control: ") and words in str(error.value)


@pytest.mark.parametrize(
    ("pair", "key", "words"),
    [
        ({"model": "vmm", "baseline": "alone"}, "0.model", "no model is called 'vmm'. Did you mean 'vm'?"),
        ({"model": "vm", "baseline": "alon"}, "0.baseline", "no model is called 'alon'. Did you mean 'alone'?"),
        ({"model": "vm", "baseline": "second.control"}, "0.baseline", "no model is called 'second.control'"),
        ({"model": "vm", "baseline": "vm"}, "0.baseline", "'vm' cannot be measured against itself"),
        ({"model": "alone", "baseline": "other"}, "0.baseline", "'alone' predicts click, 'other' conversion: no task"),
        ({"model": "vm", "baseline": "alone", "task": "conversion"}, "0.task", "'conversion'. Allowed: click."),
        ({"model": "vm", "baseline": "alone", "task": "clik"}, "0.task", "Did you mean 'click'?"),
        ({"model": "vm", "with": "alone"}, "0.with", "unknown key 'with'. Allowed: baseline, model, task."),
        ({"model": "vm"}, "0.baseline", "the required key 'baseline' is missing"),
    ],
)
def test_a_wrong_pair_is_named(arms: Tree, write: Callable[..., str], pair: Tree, key: str, words: str) -> None:
    arms["models"]["other"] = {"backbone": {"name": "dlrm"}, "tasks": ["conversion"]}
    arms["compare"] = [pair]
    path = write(arms)
    with pytest.raises(exfm.ConfigError) as error:
        exfm.load_experiment(path)
    assert str(error.value).startswith(f"{path}: compare.{key}: ") and words in str(error.value)
