"""Models come and go in a run's folder: each is its own section, its stream and its teachers."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import exfm
from tests.training.logs import experiment_dict, load, make_log, predictions, supervision, timeless, train, write_log

ROWS = 600
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


def three_models(log: str, run_dir: str) -> dict[str, Any]:
    """An FM that stores all it can, and two students that use it."""
    config = experiment_dict(log, run_dir, labels=("click", "buy"))
    models = config["models"]
    models["fm"]["supervision"] = {"states": {"user": ["user", "history"]}, "rows": ["item"], "embedding": "float16"}
    models["second"] = copy.deepcopy(models["vm"])
    models["second"] |= {
        "tasks": ["click"],
        "where": {"item": list(range(15))},
        "control": False,
        "transfer": [
            {"name": "auxiliary_head", "teacher": "fm"},
            {"name": "compact_features", "teacher": "fm"},
            {"name": "representation", "teacher": "fm"},
        ],
    }
    return config


def without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    """Copies an experiment without some of its models."""
    config = copy.deepcopy(config)
    for name in names:
        del config["models"][name]
    return config


def checksums(run_dir: str, *models: str) -> dict[str, str]:
    """Hashes every file of some models."""
    sums: dict[str, str] = {}
    for path in sorted(Path(run_dir).rglob("*")):
        if path.is_file() and set(path.parts) & set(models):
            sums[str(path.relative_to(run_dir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sums


@pytest.fixture(scope="module")
def together(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The results and the folder of a run of all models at once."""
    folder = tmp_path_factory.mktemp("together")
    run_dir = str(folder / "run")
    return exfm.run(load(folder, three_models(log, run_dir))), run_dir


def assert_equal_models(run_dir: str, other: str, *models: str) -> None:
    """Checks that two runs have stored the same predictions and supervision of some models."""
    for model in models:
        expected = predictions(other, model)
        assert predictions(run_dir, model) == expected and expected
        assert supervision(run_dir, model) == supervision(other, model)


def test_a_model_added_later_trains_alone(log: str, together: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    config = three_models(log, run_dir)
    train(load(tmp_path, without(config, "second")))
    before = checksums(run_dir, "fm", "vm", "vm.control")
    assert before
    results = exfm.run(load(tmp_path, config))
    assert checksums(run_dir, "fm", "vm", "vm.control") == before
    assert timeless(results) == timeless(together[0])
    assert_equal_models(run_dir, together[1], "fm", "vm", "vm.control", "second")


def _longer_table(config: dict[str, Any]) -> None:
    config["stream"]["source"]["features"][0]["rows"] = 96


def _no_price(config: dict[str, Any]) -> None:
    del config["stream"]["source"]["features"][2]


def _later_label(config: dict[str, Any]) -> None:
    config["stream"]["source"]["labels"][0]["delay"] = "1d"


def _other_weight(config: dict[str, Any]) -> None:
    config["models"]["vm"]["transfer"][0]["weight"] = 3.0


def _other_fm(config: dict[str, Any]) -> None:
    config["models"]["fm"]["embedding_dim"] = 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_longer_table, r"stream\.features\.user\.rows: it had 64 rows and now has 96"),
        (_no_price, r"stream\.features\.price was \{.*\.\.\. and is now None"),
        (_later_label, r"stream\.labels\.click\.delay was '0s' and is now '1d'"),
        (
            _other_weight,
            r"models\.vm\.transfer\.0\.weight was 2\.0 and is now 3\.0.*Give the changed model another name",
        ),
        (_other_fm, r"another model 'fm': models\.fm\.embedding_dim was 8 and is now 4"),
    ],
)
def test_a_changed_model_is_named_in_a_line(
    edit: Edit, message: str, log: str, together: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    before = checksums(together[1], "commits", "config.yaml")
    config = three_models(log, together[1])
    edit(config)
    with pytest.raises(exfm.ConfigError, match=message) as raised:
        exfm.run(load(tmp_path, config))
    assert len(str(raised.value)) < 500
    assert checksums(together[1], "commits", "config.yaml") == before


def test_features_and_labels_that_a_model_does_not_use_may_come_and_go(
    log: str, together: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    run_dir = str(tmp_path / "run")
    config = without(three_models(log, run_dir), "second")
    config["models"] |= {"alone": config["models"].pop("vm") | {"transfer": [], "control": False, "tasks": ["click"]}}
    del config["models"]["fm"]
    train(load(tmp_path, config))
    before = checksums(run_dir, "alone")
    source = config["stream"]["source"]
    source["features"] = [feature for feature in source["features"] if feature["name"] in ("user", "item")]
    source["labels"] = source["labels"][:1]
    config["models"]["younger"] = config["models"]["alone"] | {"batch_size": 32}
    exfm.run(load(tmp_path, config))
    assert checksums(run_dir, "alone") == before
    assert predictions(run_dir, "younger")


def test_a_model_that_starts_later_has_the_windows_from_there(log: str, tmp_path: Path) -> None:
    run_dir = str(tmp_path / "run")
    config = three_models(log, run_dir)
    config["models"]["vm"]["start"] = "2023-11-17T12:00"
    config["models"]["second"]["start"] = "2023-11-18T00:00:00Z"
    results = exfm.run(load(tmp_path, config))
    # The first window of the log is that of 15 November; a window that begins before the start is left out.
    assert sorted(predictions(run_dir, "fm")) == [0, 1, 2, 3, 4, 5]
    for model in ("vm", "vm.control", "second"):
        assert sorted(predictions(run_dir, model)) == [3, 4, 5]
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == 1.0
    assert not results["notes"]
    # A job that goes on does not take rows before the start for rows that have come late.
    train(load(tmp_path, config))
    assert not Path(run_dir, "late").exists()


def lent(config: dict[str, Any], folder: Path, fm_dir: str, *models: str) -> dict[str, Any]:
    """Copies an experiment with some of its models, whose teacher ``fm`` another run trains."""
    config = copy.deepcopy(config)
    config["name"] = "-".join(models)
    config["run_dir"] = str(folder / config["name"])
    config["models"] = {name: config["models"][name] for name in models}
    config["teachers"] = {"fm": {"run": fm_dir, "model": "fm"}}
    return config


def test_a_teacher_of_another_run_gives_all_that_a_teacher_of_the_file_gives(
    log: str, together: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    config = three_models(log, str(tmp_path / "fm"))
    train(load(tmp_path, without(config, "vm", "second")))
    assert_equal_models(config["run_dir"], together[1], "fm")
    for models in (("vm",), ("second",)):
        results = exfm.run(load(tmp_path, lent(config, tmp_path, config["run_dir"], *models)))
        assert_equal_models(str(tmp_path / models[0]), together[1], *models)
        expected = together[0]
        assert results["gains"] == [gain for gain in expected["gains"] if gain["model"] in models]
        assert results["supervision"]["fm"] == {name: expected["supervision"]["fm"][name] for name in models}
        actual = timeless(results)["models"]
        assert actual["fm"].pop("trained_in") == config["run_dir"]
        assert actual == {name: timeless(expected)["models"][name] for name in actual}


def test_epochs_with_a_teacher_of_another_run(log: str, tmp_path: Path) -> None:
    config = three_models(log, str(tmp_path / "fm"))
    config["models"]["vm"]["epochs"] = {"count": 2, "until": "2023-11-17"}
    whole = {**config, "run_dir": str(tmp_path / "whole")}
    train(load(tmp_path, without(whole, "second")))
    train(load(tmp_path, without(config, "vm", "second")))
    train(load(tmp_path, lent(config, tmp_path, config["run_dir"], "vm")))
    assert_equal_models(str(tmp_path / "vm"), str(tmp_path / "whole"), "vm")


def test_students_elsewhere_wait_for_their_teacher(
    log: str, together: tuple[dict[str, Any], str], tmp_path: Path
) -> None:
    table = make_log(ROWS)
    growing = str(tmp_path / "growing")
    times = table.column("event_time").cast(pa.int64()).to_numpy()
    day = 86_400_000_000
    config = three_models(growing, str(tmp_path / "fm"))
    student = lent(config, tmp_path, config["run_dir"], "vm")
    for days in (2, 4, 6):
        write_log(Path(growing), table.slice(0, int((times < times[0] // day * day + days * day).sum())))
        write = load(tmp_path, without(config, "vm", "second"))
        results = None
        if days > 2:
            # The student comes first: it does the windows that its teacher has done, and says what it waits for.
            results = exfm.run(load(tmp_path, student))
            assert results["time"]["waiting_for"] and "it waits for the supervision of 'fm'" in results["notes"][0]
        train(write)
    results = exfm.run(load(tmp_path, student))
    assert results["time"]["waiting_for"] is None and not results["notes"]
    for window, rows in predictions(together[1], "vm").items():
        actual = predictions(str(tmp_path / "vm"), "vm")[window]
        assert actual.column("example_id").equals(rows.column("example_id"))
    expected = together[0]["supervision"]["fm"]["vm"]["hit_rate"]
    assert results["supervision"]["fm"]["vm"]["hit_rate"] == expected


def test_what_a_teacher_of_another_run_lacks_is_said_before_anything_is_trained(log: str, tmp_path: Path) -> None:
    config = without(three_models(log, str(tmp_path / "fm")), "vm", "second")
    everything = three_models(log, str(tmp_path / "fm"))
    student = lent(everything, tmp_path, config["run_dir"], "vm")
    with pytest.raises(exfm.ConfigError, match=r"teachers\.fm\.run: .* holds no run.*exfm train CONFIG --model fm"):
        load(tmp_path, student)
    config["models"]["fm"]["supervision"] = {"store": False}
    train(load(tmp_path, config))
    with pytest.raises(exfm.ConfigError, match=r"does not store its supervision: set models\.fm\.supervision\.store"):
        load(tmp_path, student)
    config["models"]["fm"]["supervision"] = {"store": True}
    train(load(tmp_path, config))  # nothing is left to do, and the record says now that it stores
    with pytest.raises(exfm.ConfigError, match=r"'fm' has trained on window .* without storing its supervision"):
        exfm.run(load(tmp_path, student))
    student["teachers"]["fm"]["model"] = "fmm"
    with pytest.raises(exfm.ConfigError, match=r"teachers\.fm\.model: .* has no model 'fmm'. Did you mean 'fm'"):
        load(tmp_path, student)
    student["teachers"]["fm"]["model"] = "fm"
    student["stream"]["window"] = "12h"
    with pytest.raises(exfm.ConfigError, match=r"has windows of 1d; this file has 12h at stream\.window"):
        load(tmp_path, student)
