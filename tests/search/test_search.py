"""A search ends bad trials early, resumes after a kill, trains all arms alike, and measures the best on fresh seeds."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

import exfm
from exfm.config.search_section import SearchedParameter
from exfm.search.arms import SearchedArm
from exfm.search.search import Search
from exfm.search.space import Values, grid_size
from exfm.search.study import ArmStudy, StudySettings, TrialResult
from tests.training.logs import experiment_dict, make_log, write_log

PARAMETERS = {
    "a": SearchedParameter(low=1e-4, high=1.0, log=True),
    "b": SearchedParameter(choices=([1], [2, 3], None)),
    "c": SearchedParameter(low=1, high=4),
}
FIRST = {"a": 1e-4, "b": [1], "c": 1}


def landscape(values: Values) -> float:
    return -((math.log10(values["a"]) + 2) ** 2) + 0.5 * (values["b"] == [2, 3]) - 0.1 * abs(values["c"] - 3)


class Kill(BaseException):
    """Ends the process in the middle of a trial."""


def study(folder: Path | None = None, pruner: Any = "median", **fields: Any) -> ArmStudy:
    storage = None
    if folder is not None:
        storage = JournalStorage(JournalFileBackend(str(folder / "journal")))
    return ArmStudy("vm", PARAMETERS, FIRST, StudySettings(20, pruner, warmup=2, seed=3), storage, **fields)


def train(number: int, values: Values) -> Iterator[float]:
    for window in range(1, 9):
        yield landscape(values) * (1 - 0.5**window)


def test_it_finds_a_better_point_and_ends_bad_trials_early() -> None:
    for pruner in ("median", "successive_halving"):
        searched = study(pruner=pruner)
        searched.run(train)
        assert len(searched.results) == 20 and searched.results[0].values == FIRST
        assert searched.best.figure is not None and searched.best.figure > -0.5 > landscape(FIRST)
        states = {result.state for result in searched.results}
        assert states == {"complete", "pruned"} and searched.results[0].state == "complete"
        assert all(2 < result.windows <= 8 for result in searched.results)


def test_an_interrupted_search_has_the_trials_of_an_undisturbed_search(tmp_path: Path) -> None:
    undisturbed = study()
    undisturbed.run(train)
    calls = 0

    def dying(number: int, values: Values) -> Iterator[float]:
        nonlocal calls
        for figure in train(number, values):
            calls += 1
            if calls % 13 == 0:
                raise Kill
            yield figure

    kills = 0
    while True:
        try:
            study(tmp_path).run(dying)
            break
        except Kill:
            kills += 1
    assert kills > 3
    assert study(tmp_path).results == undisturbed.results


def test_values_that_fail_or_cost_too_much_are_told_and_the_first_may_not_fail() -> None:
    def failing(number: int, values: Values) -> Iterator[float]:
        yield 0.0
        if values["c"] == 4:
            raise exfm.RunError("the model has diverged")
        yield landscape(values)

    searched = study(too_dear=lambda values: "too much" if values["b"] is None else "")
    searched.run(failing)
    by_state = {result.state: result for result in searched.results}
    assert by_state["failed"].reason == "the model has diverged" and by_state["failed"].windows == 1
    assert by_state["too dear"].windows == 0 and by_state["too dear"].reason == "too much"
    assert {result.state for result in searched.results if result.values["b"] is None} == {"too dear"}
    with pytest.raises(exfm.RunError, match="at once"):
        study().run(lambda number, values: (_ for _ in ()).throw(exfm.RunError("at once")))


def test_the_grid_counts_the_values_of_choices_and_steps() -> None:
    assert grid_size(PARAMETERS) is None
    stepped = SearchedParameter(low=0.1, high=0.7, step=0.1)
    assert grid_size({"b": PARAMETERS["b"], "c": PARAMETERS["c"], "d": stepped}) == 3 * 4 * 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("search")
    config = experiment_dict(write_log(folder / "log", make_log(300)), str(folder / "run"))
    config["models"]["fm"] |= {"sequence_encoder": None, "features": ["user", "item", "price"]}
    config["stream"] |= {"window": "36h", "chunk_rows": 512}
    config["search"] = {
        "model": "vm",
        "trials": 3,
        "warmup": 1,
        "seeds": 1,
        "parameters": {
            "models.vm.optimizer.dense.lr": {"low": 0.0001, "high": 0.1, "log": True},
            "models.vm.embedding_dim": {"choices": [4, 8, 16]},
            "models.vm.transfer.0.weight": {"low": 0.1, "high": 2.0},
        },
    }
    return config


def test_a_search_trains_each_arm_alike_and_reads_nothing_that_it_reports(config: dict[str, Any]) -> None:
    lines: list[tuple[str, int]] = []

    def on_trial(arm: SearchedArm, result: TrialResult) -> None:
        lines.append((arm.name, result.number))
        if len(lines) == 2:
            raise Kill

    with pytest.raises(Kill):
        Search(config).run(on_trial)
    summary = Search(config).run(lambda arm, result: lines.append((arm.name, result.number)))
    # The control is first, and no trial is run again.
    assert lines == [(name, number) for name in ("vm.control", "vm") for number in range(3)]
    arms = summary["arms"]
    assert [len(arm["trials"]) for arm in arms.values()] == [3, 3]
    assert "models.vm.transfer.0.weight" not in arms["vm.control"]["parameters"]
    assert len(arms["vm"]["parameters"]) == 3 and len(arms["vm.control"]["parameters"]) == 2
    assert arms["vm.control"]["trials"][0]["gain_percent"] == 0
    folder = Path(config["run_dir"], "search")
    assert json.loads((folder / "search.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["tuning"]["windows"] + summary["held_out"]["windows"] == 5
    for arm, entry in arms.items():
        for trial in entry["trials"]:
            committed = sorted((folder / f"{arm}-{trial['number']:04d}").glob(f"predictions/{arm}/*.parquet"))
            assert len(committed) == trial["windows"] <= 3
            if trial["values"].get("models.vm.embedding_dim") == 16:
                assert trial["state"] == "too dear" and trial["windows"] == 0 and "at serving" in trial["reason"]
    # A single FM for all trials, and another for each fresh seed.
    assert len(list(folder.glob("teacher-fm-*"))) == 1 + 1
    (gain,) = summary["gains"]
    assert gain["baseline"] == "vm.control" and [entry["seed"] for entry in gain["seeds"]] == [1]
    low, high = gain["interval95"]
    assert low <= gain["ne_gain_percent"] <= high
    # The fresh runs are those of an ordinary run with the chosen values.
    chosen = arms["vm"]["trials"][arms["vm"]["best"]]["values"]
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    alone = copy.deepcopy(config)
    alone["run_dir"] = f"{config['run_dir']}-alone"
    del alone["search"]
    exfm.run(exfm.load_experiment(alone, [*overrides, "seed=1"]))
    fresh = folder / "fresh-vm-seed-1" / "predictions" / "vm"
    for file in sorted(fresh.glob("*.parquet")):
        assert file.read_bytes() == Path(alone["run_dir"], "predictions", "vm", file.name).read_bytes()


def test_another_search_in_the_folder_is_refused_and_more_trials_are_not(config: dict[str, Any]) -> None:
    other = copy.deepcopy(config)
    other["models"]["fm"]["embedding_dim"] = 4
    with pytest.raises(exfm.ConfigError, match="holds another search: the experiment changed"):
        Search(other).run()
    assert Search(config, ["search.trials=4"]).section.trials == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["search.model=vmm"], r"search\.model: no model is called 'vmm'.*Did you mean 'vm'"),
        (["search.task=buy"], r"search\.task: vm does not predict 'buy'"),
        (["models.vm.control=false"], r"search\.model: vm has no control"),
        (["search.holdout=0.9"], "fewer than two are left"),
        (["models.vm.embedding_dim=32"], r"the file has 32 at models\.vm\.embedding_dim"),
        (["search=null"], "there is no section search"),
        (["search.pruner=best"], r"search\.pruner"),
    ],
)
def test_errors_name_the_key(config: dict[str, Any], changes: list[str], message: str) -> None:
    with pytest.raises(exfm.ConfigError, match=message):
        Search(config, changes)


def test_a_parameter_must_exist_and_change_an_arm(config: dict[str, Any]) -> None:
    for key, values, message in (
        ("models.vm.batch_sise", {"choices": [1, 2]}, "batch_sise"),
        ("evaluation.replicates", {"low": 100, "high": 200}, "it changes none of vm.control, vm"),
        ("models.vm.batch_size", {"low": 10}, "give low and high, or choices"),
    ):
        wrong = {**config, "search": {**config["search"], "parameters": {key: values}}}
        with pytest.raises(exfm.ConfigError, match=message):
            Search(wrong)


def test_the_command_prints_both_tables(config: dict[str, Any], write: Callable[..., str], exfm_cli: Any) -> None:
    done = exfm_cli("search", write(config))
    assert done.status == 0, done.err
    assert "vm.control" in done.out and "fresh seeds" in done.out and "search.json" in done.out
