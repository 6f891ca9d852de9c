"""Initial weights: the experiment's seed and a model's shape decide them, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import exfm
from exfm.interfaces.local_shards import whole_tensors
from exfm.learning.trainer import Trainer
from exfm.modeling.build import build_growth
from exfm.transfer.build import teacher_specs
from tests.training.logs import experiment_dict, load

SAME_SHAPE: dict[str, dict[str, Any]] = {
    "name": {},
    "traffic": {"where": {"item": 3}},
    "batch_size": {"batch_size": 16},
    "optimizer": {"optimizer": {"dense": {"name": "sgd", "lr": 0.5}, "tables": {"lr": 0.5}}},
    "no_transfer": {"transfer": []},
    "transfer": {"transfer": [{"name": "auxiliary_head", "teacher": "fm"}, {"name": "direct", "teacher": "fm"}]},
    "teaches": {"supervision": {"states": {"user": ["user"]}, "embedding": "int8"}},
    "precision": {"precision": "bf16"},
    "named_tasks": {"tasks": ["click"]},
    "other_order": {"features": ["item", "user"]},
}
OTHER_SHAPE: dict[str, dict[str, Any]] = {
    "init_seed": {"init_seed": 0},
    "another_init_seed": {"init_seed": 1},
    "backbone": {"backbone": {"name": "dlrm", "hidden": [8]}},
    "backbone_name": {"backbone": {"name": "wukong", "layers": 1}},
    "encoder": {"sequence_encoder": {"name": "din"}},
    "features": {"features": ["user", "item", "price"]},
    "embedding_init": {"embedding_init": 0.01},
    "embedding_dim": {"embedding_dim": 4},
    "dense_tokens": {"dense_tokens": 2},
    "head_hidden": {"head_hidden": [4]},
    "tasks": {"tasks": ["click", "buy"]},
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> exfm.Experiment:
    """A model of each kind beside `vm`; nothing of it is run."""
    folder = tmp_path_factory.mktemp("shapes")
    config = experiment_dict(str(folder), str(folder / "run"), labels=("click", "buy"))
    models = config["models"]
    models["fm"]["tasks"] = models["vm"]["tasks"] = ["click"]
    for name, changed in (SAME_SHAPE | OTHER_SHAPE).items():
        models[name] = {**copy.deepcopy(models["vm"]), "control": False, **changed}
    return load(folder, config)


def weights(experiment: exfm.Experiment, name: str) -> Mapping[str, Tensor]:
    arm = next(arm for arm in experiment.arms if arm.name == name)
    plan = experiment.config.parallel.build()
    trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), plan, experiment.config.seed)
    return whole_tensors(trainer.weights())


def differing(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> set[str]:
    """The random weights of both whose values differ."""
    both = [name for name in left if name in right and left[name].shape == right[name].shape]
    return {name for name in both if not torch.equal(left[name].nan_to_num(), right[name].nan_to_num())}


@pytest.mark.parametrize("name", ["vm.control", *SAME_SHAPE])
def test_models_of_equal_shape_start_from_equal_weights(experiment: exfm.Experiment, name: str) -> None:
    vm, other = weights(experiment, "vm"), weights(experiment, name)
    assert vm.keys() <= other.keys()
    assert not differing(vm, other)
    assert any(value.is_floating_point() and value.std() > 0 for value in vm.values() if value.numel() > 1)


@pytest.mark.parametrize("name", OTHER_SHAPE)
def test_another_shape_or_init_seed_has_weights_of_its_own(experiment: exfm.Experiment, name: str) -> None:
    changed = differing(weights(experiment, "vm"), weights(experiment, name))
    of_tables = {key for key in changed if ".table_" in key}
    assert of_tables or name == "embedding_dim", "the tables of users and items are drawn anew"


def test_no_two_shapes_or_init_seeds_share_a_start(experiment: exfm.Experiment) -> None:
    grown = {arm.name: build_growth(arm, experiment.schema, experiment.config.seed) for arm in experiment.arms}
    seeds = {name: growth._seed for name, growth in grown.items()}
    assert {seeds[name] for name in (*SAME_SHAPE, "vm.control")} == {seeds["vm"]}
    assert len({seeds[name] for name in ("vm", "fm", *OTHER_SHAPE)}) == 2 + len(OTHER_SHAPE)


def test_the_experiments_seed_and_nothing_else_moves_all_models(experiment: exfm.Experiment, tmp_path: Path) -> None:
    config = experiment_dict(str(tmp_path), str(tmp_path / "run"))
    first, again, second = (load(tmp_path, config, f"seed={seed}") for seed in (3, 3, 4))
    for name in ("fm", "vm"):
        assert not differing(weights(first, name), weights(again, name))
        assert differing(weights(first, name), weights(second, name))


def test_a_table_that_grows_keeps_the_seed(tmp_path: Path) -> None:
    config = experiment_dict(str(tmp_path), str(tmp_path / "run"))
    before, now = (load(tmp_path, config, f"stream.source.features.0.rows={rows}") for rows in (64, 128))
    seeds = [build_growth(run.arms[0], run.schema, 0)._seed for run in (before, now)]
    assert seeds[0] == seeds[1]
