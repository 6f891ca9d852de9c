"""Compact features: made by the teacher, told in time, added to the student's rows and folded into the served model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import exfm
from exfm.config.checks import Arm
from exfm.learning.trainer import Trainer
from exfm.modeling.entity_states import EntityStates
from exfm.modeling.labels import Labels
from exfm.modeling.vector_table import RowVectors
from exfm.transfer.build import teacher_specs
from exfm_plugins.transfer.compact_features.strategy import CompactFeatures
from tests.training.logs import (
    DAY_US,
    START_US,
    differences,
    experiment_dict,
    load,
    make_log,
    predictions,
    supervision,
    train,
    write_log,
)

STATES: dict[str, dict[str, Any]] = {
    "tokens": {"states": {"user": ["user", "history"], "item": ["item"]}, "state_dim": 4},
    "vectors": {
        "states": {"user": {"from": "representation"}, "item": {"from": "layers.0"}},
        "state_dim": 4,
        "state_dtype": "int8",
        "embedding": "float16",
        "embedding_dim": 6,
    },
}
COMPACT = {"name": "compact_features", "teacher": "fm"}


def config(folder: Path, name: str, log: pa.Table | None = None, states: str = "tokens") -> dict[str, Any]:
    """An FM that stores states and a VM that reads them."""
    path = write_log(folder / f"log-{name}", make_log() if log is None else log)
    changed = experiment_dict(path, str(folder / name))
    changed["models"]["fm"]["supervision"] = dict(STATES[states])
    changed["models"]["vm"]["transfer"] = [dict(COMPACT)]
    return changed


def trainer_of(experiment: exfm.Experiment, name: str) -> Trainer:
    arm = next(arm for arm in experiment.arms if arm.name == name)
    assert isinstance(arm, Arm)
    plan = experiment.config.parallel.build()
    return Trainer(arm, experiment.schema, teacher_specs(experiment), plan, experiment.config.seed)


@pytest.fixture(scope="module", params=STATES)
def states(request: pytest.FixtureRequest) -> str:
    """Whether states are made of tokens, or read from vectors of the FM."""
    return str(request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, states: str) -> tuple[str, dict[str, Any]]:
    """The folder of a run without a stop, and its results."""
    folder = tmp_path_factory.mktemp("whole")
    return str(folder / "whole"), exfm.run(load(folder, config(folder, "whole", states=states)))


def test_states_are_stored_beside_the_predictions(whole: tuple[str, dict[str, Any]]) -> None:
    for rows in supervision(whole[0], "fm").values():
        for entity in ("user", "item"):
            states = rows.column(f"state_{entity}")
            assert states.type.list_size == 4 and states.null_count == 0
            assert len(set(map(str, states.to_pylist()))) > 10


def test_the_teacher_learns_as_if_it_stored_no_states(whole: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    without = config(tmp_path, "without")
    without["models"]["fm"].pop("supervision")
    without["models"]["vm"]["transfer"] = [{"name": "direct", "teacher": "fm"}]
    train(load(tmp_path, without))
    actual, expected = (predictions(run_dir, "fm") for run_dir in (whole[0], str(tmp_path / "without")))
    assert all(actual[window].equals(expected[window]) for window in expected)


def test_an_interrupted_run_and_separate_jobs_end_alike(
    whole: tuple[str, dict[str, Any]], states: str, tmp_path: Path
) -> None:
    settings = config(tmp_path, "whole", states=states)
    experiment = load(tmp_path, {**settings, "run_dir": str(tmp_path / "interrupted")})
    chunks = 0

    def stop(_: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        exfm.run(experiment, stop)
    assert not differences(exfm.run(experiment), whole[1])


def test_a_students_prediction_depends_on_no_later_state(
    whole: tuple[str, dict[str, Any]], states: str, tmp_path: Path
) -> None:
    """With other labels from the fourth day on, nothing predicted in the first four days changes."""
    table = make_log()
    days = (table.column("event_time").cast("int64").to_numpy() - START_US) // DAY_US
    table, late = table.filter(pa.array(days < 4)), days[days < 4] == 3
    clicks = zip(table.column("click").to_pylist(), late, strict=True)
    flipped = [1 - click if other else click for click, other in clicks]
    changed = table.set_column(table.column_names.index("click"), "click", [flipped])
    train(load(tmp_path, config(tmp_path, "changed", changed, states)))
    first, second = (predictions(run_dir, "vm") for run_dir in (whole[0], str(tmp_path / "changed")))
    column = "prediction_click"
    for window in range(4):
        actual, expected = (run[window].column(column).to_pylist() for run in (first, second))
        if window < 3:
            assert actual == expected
        else:
            assert actual[0] == expected[0] and actual != expected


def test_rows_of_some_features_have_the_vectors_of_the_chunk_and_need_none_of_other_features(tmp_path: Path) -> None:
    """A strategy may read the tokens of a feature beside vectors that are added to the rows of another."""
    experiment = load(tmp_path, config(tmp_path, "run"))
    trainer = trainer_of(experiment, "vm")
    batch = trainer.model.narrow(next(iter(_batches(experiment))))
    plain = trainer.model.featurizer.rows(batch, ("item",))["item"]
    item, user = trainer.transfer.parameters.fed_tables()
    user.table.looked_up = {"user": torch.randn(batch.size, 4)}
    assert torch.equal(trainer.model.featurizer.rows(batch, ("item",))["item"], plain)
    item.table.looked_up = {"item": torch.randn(batch.size, 4)}
    added = trainer.model.featurizer.offsets["item"].of_feature("item")
    assert added is not None and added.any()
    torch.testing.assert_close(trainer.model.featurizer.rows(batch, ("item",))["item"], plain + added)


def test_what_is_published_has_the_offsets_inside(tmp_path: Path) -> None:
    experiment = load(tmp_path, config(tmp_path, "run"))
    trainer = trainer_of(experiment, "vm")
    control = trainer_of(experiment, "vm.control")
    tables = trainer.transfer.parameters.fed_tables()
    assert {fed.columns for fed in tables} == {("state_user",), ("state_item",)}
    for fed in tables:
        fed.table.store(RowVectors(torch.arange(40), torch.randn(40, 4)))
    window = next(iter(_batches(experiment)))
    batch = trainer.model.narrow(window)
    taught = trainer.predict(batch).probabilities["click"]
    assert not torch.allclose(taught, control.predict(batch).probabilities["click"])
    weights = trainer.weights()
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in control.weights().items()
    }
    control.load_weights(weights)
    torch.testing.assert_close(control.predict(batch).probabilities["click"], taught)


def _batches(experiment: exfm.Experiment) -> Any:
    from exfm.data.stream import ChunkReader
    from exfm.data.windows import stream_windows
    from exfm.interfaces.data_source import Shard

    stream = experiment.config.stream
    reader = ChunkReader(experiment.source, experiment.schema, stream, {}, Shard())
    for window in stream_windows(experiment.source, stream.window):
        for chunk in reader.read(window):
            yield chunk.batch


def test_each_state_is_added_to_the_table_of_its_entity() -> None:
    tables = {"user": "users", "friend": "users", "item": "items"}
    rows = {"users": 5, "items": 7}
    student = exfm.transfer.StudentSpec(("click",), 8, lambda: torch.nn.Linear(8, 1), 6, tables, rows)
    teacher = exfm.transfer.TeacherSpec("fm", ("click",), None, {"user": 4, "item": 4, "friend": 4, "shop": 4})
    strategy = CompactFeatures(CompactFeatures.Config(teacher="fm", scale=0.5), student, teacher)
    added = {add.table: add for add in strategy.transfers()}
    assert {table: [source.name for source in add.sources] for table, add in added.items()} == {
        "users": ["user", "friend"],
        "items": ["item"],
    }
    vector = torch.arange(4.0)
    expected = torch.cat([vector / 2, torch.zeros(2)])
    assert all(torch.equal(add.projection(vector), expected) and add.keep_own_row for add in added.values())


def test_a_teacher_without_states_is_refused(tmp_path: Path) -> None:
    changed = config(tmp_path, "run")
    changed["models"]["fm"].pop("supervision")
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.transfer\.0: compact_features: 'fm' stores no states"):
        exfm.run(load(tmp_path, changed))


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"usr": ["user"]}, r"supervision\.states: the data has no categorical feature .*'usr'.*user"),
        ({"user": ["price"]}, r"states\.user: the data has no feature, other than a dense one, .*'price'"),
        ({"user": []}, r"states\.user: name at least one"),
    ],
)
def test_wrong_states_are_refused(tmp_path: Path, states: dict[str, list[str]], message: str) -> None:
    changed = config(tmp_path, "run")
    changed["models"]["fm"]["supervision"] = {"states": states}
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, changed)


def test_the_states_explain_as_a_factorization_machine_does() -> None:
    torch.manual_seed(0)
    names = ("user", "item", "shop")
    described = {name: [name] for name in names}
    module = EntityStates(described, names, (), ("click", "buy"), dim=4, width=3).double()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.1).requires_grad_(False)
    tokens_BND = torch.randn(5, 3, 4, dtype=torch.float64)
    states = module(tokens_BND, {})
    logits = {task: torch.randn(5, dtype=torch.float64) for task in ("click", "buy")}
    labels = {"buy": torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)}
    expected = 0.0
    for b in range(5):
        z = module.bias_T[1].item()
        for i, entity in enumerate(names):
            z += sum(float(module.linear_TNK[1, i, k]) * float(states[entity][b, k]) for k in range(3))
            for other in names[:i]:
                z += sum(
                    float(module.product_TK[1, k]) * float(states[entity][b, k]) * float(states[other][b, k])
                    for k in range(3)
                )
        target = (float(labels["buy"][b]) + 1 / (1 + math.exp(-float(logits["buy"][b])))) / 2
        p = 1 / (1 + math.exp(-z))
        expected -= (target * math.log(p) + (1 - target) * math.log(1 - p)) / 5
    assert float(module.loss(states, logits, Labels(labels))) == pytest.approx(expected, rel=1e-9)
