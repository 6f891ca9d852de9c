"""Teacher inputs: stored states as input tokens; causal, the same in every way to run, and marked."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

import exfm
from exfm.config.inputs import ModelInput
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows
from exfm.learning.trainer import Trainer
from exfm.modeling.teacher_inputs import TeacherInputs
from exfm.modeling.vector_table import HistoryTable, RowVectors
from exfm.reporting.result_table import result_table
from exfm.scheduling.identity import open_run
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from exfm.transfer.build import teacher_specs
from exfm.transfer.chunk_vectors import ChunkVectors
from exfm.transfer.vector_feed import FedTable, VectorFeed
from exfm_plugins.inputs.latest_state.model import LatestState
from tests.training.interruption import run_interrupted
from tests.training.logs import differences, experiment_dict, load, make_log, predictions, supervision, train, write_log

STATES = {"states": {"user": ["user", "history"], "item": ["item"]}, "state_dim": 4}
LATEST = {"name": "latest_state", "teacher": "fm", "entities": ["user"]}
LOOPFM = {"name": "loopfm", "teacher": "fm", "entities": ["user"], "states": 3}
CHUNK = 128
ROWS = 400  # of the first days, for runs that are compared no further


def config(folder: Path, name: str, log: pa.Table | None = None, **vm: Any) -> dict[str, Any]:
    """An FM that stores states, in batches of 64, and a VM that looks the user's up, in batches of 32."""
    path = write_log(folder / f"log-{name}", make_log() if log is None else log)
    settings = experiment_dict(path, str(folder / name))
    settings["models"]["fm"]["supervision"] = dict(STATES)
    settings["models"]["vm"] |= {"batch_size": 32, "transfer": [], "inputs": [dict(LATEST)]} | vm
    return settings


def trainer_of(experiment: exfm.Experiment, name: str) -> Trainer:
    arm = next(arm for arm in experiment.arms if arm.name == name)
    plan = experiment.config.parallel.build()
    return Trainer(arm, experiment.schema, teacher_specs(experiment), plan, experiment.config.seed)


def chunks(experiment: exfm.Experiment) -> list[Batch]:
    stream = experiment.config.stream
    reader = ChunkReader(experiment.source, experiment.schema, stream, {}, exfm.sources.Shard())
    windows = stream_windows(experiment.source, stream.window)
    return [chunk.batch for window in windows for chunk in reader.read(window)]


def latest(teacher: str, width: int) -> ModelInput:
    fields = LatestState.Config(teacher=teacher, entities=("user",))
    spec = exfm.components.ComponentSpec("teacher_input", "latest_state", LatestState, fields)
    return ModelInput(spec, exfm.transfer.InputSpec(4, 1, {"user": width}))


def test_a_token_is_the_map_of_the_newest_state_and_zeros_without_one() -> None:
    inputs = TeacherInputs([latest("a", 3), latest("b", 2)], {"user": 5})
    tables = inputs.stored()
    states = torch.arange(12.0).view(4, 3)
    tables["a", "user"].store(RowVectors(torch.tensor([1, 3, 1]), states[:3]))
    tables["a", "user"].store(RowVectors(torch.tensor([3]), states[3:]))
    ids = KeyedJaggedTensor(
        keys=["shop", "user"],
        values=torch.tensor([4, 4, 4, 4, 1, 3, 2]),
        lengths=torch.tensor([1, 1, 1, 1, 1, 0, 1, 1]),  # the second example has no user
    )
    tokens_BMD = inputs(ids, {})
    component: Any = inputs.components[0]
    weight = component.maps["entity_user"].weight
    expected = torch.stack([weight @ states[2], torch.zeros(4), weight @ states[3], torch.zeros(4)])
    torch.testing.assert_close(tokens_BMD[:, 0], expected)
    assert not tokens_BMD[:, 1].any()
    assert inputs.token_names == ("latest_state.0:0", "latest_state.1:0")


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> exfm.Experiment:
    folder = tmp_path_factory.mktemp("ended")
    experiment = load(folder, config(folder, "run"))
    train(experiment)
    return experiment


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("lag_s", [0, 1, 90, 3_600, 10**9])
def test_what_is_looked_up_are_the_newest_states_that_have_reached_the_example(
    ended: exfm.Experiment, lag_s: int, length: int
) -> None:
    """Against a search through the stored rows: of a row that the student has to predict, nothing is known."""
    experiment = ended
    table = HistoryTable(64, 4, length)
    stored = supervision(experiment.run_dir, "fm")[0]
    states = torch.tensor(stored.column("state_user").to_pylist()).half()
    learned = ~np.isnan(stored.column("prediction_click").to_numpy())
    assert not learned[:64].any() and learned[64:].all()
    first, second = chunks(experiment)[:2]
    users = torch.cat([first.sparse["user"].values(), second.sparse["user"].values()])
    times = torch.cat([first.event_time_us, second.event_time_us])
    window = next(iter(stream_windows(experiment.source, experiment.config.stream.window)))
    stream = Store(experiment.run_dir).supervision("fm", window)
    assert stream is not None
    lag_us, tables = lag_s * 1_000_000, [FedTable("fm", ("state_user",), table)]

    def newest(user: int, before: int, at_us: int) -> tuple[Tensor, Tensor]:
        reached = [r for r in range(64, before) if users[r] == user and times[r] + lag_us <= at_us][::-1][:length]
        vectors = torch.zeros(length, 4).half()
        for slot, row in enumerate(reached):
            vectors[slot] = states[row]
        return vectors, torch.arange(length) < len(reached)

    def check(actual: tuple[Tensor, Tensor], expected: list[tuple[Tensor, Tensor]]) -> None:
        vectors, is_known = zip(*expected, strict=True)
        assert torch.equal(actual[0].half(), torch.stack(vectors)) and torch.equal(actual[1], torch.stack(is_known))

    feed = VectorFeed(tables, {"fm": lag_us})
    for number, batch in enumerate((first, second)):
        teacher = stream.between(int(batch.event_time_us[0]), int(batch.event_time_us[-1]))
        feed.open(ChunkVectors(batch, {"fm": teacher}), torch.arange(CHUNK))
        for start, end in ((0, 32), (32, 96), (96, CHUNK)):
            feed.override(slice(start, end))
            rows = range(number * CHUNK + start, number * CHUNK + end)
            ids = users[number * CHUNK + start : number * CHUNK + end]
            check(table.history(ids, "user"), [newest(int(users[row]), row, int(times[row])) for row in rows])
        feed.close()
        past = (number + 1) * CHUNK
        assert not table.overrides
        check(table.history(torch.arange(64)), [newest(user, past, int(times[past - 1])) for user in range(64)])
        state, feed = feed.state(), VectorFeed(tables, {"fm": lag_us})
        feed.load_state(state)
        assert bool(state) == (lag_s > 0)
    stream.close()


def flipped_clicks(table: pa.Table, first: int) -> pa.Table:
    """The other labels from a row on."""
    clicks = table.column("click").to_numpy().copy()
    clicks[first:] = 1 - clicks[first:]
    return table.set_column(table.column_names.index("click"), "click", [clicks])


def without_history(table: pa.Table, first: int) -> pa.Table:
    """No events from a row on: the FM's states of these rows are others, and nothing that the VM itself sees."""
    history = table.column("history").to_pylist()
    kept = history[:first] + [[] for _ in history[first:]]
    return table.set_column(table.column_names.index("history"), "history", pa.array(kept, pa.list_(pa.int64())))


@pytest.fixture(scope="module")
def with_loopfm(tmp_path_factory: pytest.TempPathFactory) -> exfm.Experiment:
    folder = tmp_path_factory.mktemp("loopfm")
    experiment = load(folder, config(folder, "run", make_log().slice(0, ROWS), inputs=[dict(LOOPFM)]))
    train(experiment)
    return experiment


@pytest.mark.parametrize("component", [LATEST, LOOPFM], ids=["latest_state", "loopfm"])
@pytest.mark.parametrize(("change", "changed"), [(flipped_clicks, 5), (flipped_clicks, 100), (without_history, 40)])
def test_a_prediction_depends_on_no_later_label_nor_on_its_own_state(
    ended: exfm.Experiment,
    with_loopfm: exfm.Experiment,
    tmp_path: Path,
    component: dict[str, Any],
    change: Callable[[pa.Table, int], pa.Table],
    changed: int,
) -> None:
    """With a log that differs from a row on, only predictions after that row change.

    Other labels are learned with the batch that holds them; another state may be read from the next example on.
    """
    first = CHUNK + changed
    log = change(make_log().slice(0, ROWS), first)
    train(load(tmp_path, config(tmp_path, "changed", log, inputs=[dict(component)])))
    undisturbed = ended if component is LATEST else with_loopfm
    as_is, other = (
        pa.concat_tables(predictions(run_dir, "vm").values()).column("prediction_click").to_numpy()[:ROWS]
        for run_dir in (undisturbed.run_dir, str(tmp_path / "changed"))
    )
    end = first + 1 if change is without_history else first // 32 * 32 + 32
    same = as_is == other
    assert same[:end].all() and not same[end : end + 64].all()


def test_an_interrupted_run_with_states_on_their_way_ends_alike_and_is_marked(tmp_path: Path) -> None:
    settings = config(tmp_path, "whole", make_log(900))
    settings["models"]["fm"]["supervision"] |= {"lag": "2h"}
    settings["models"]["vm"]["inputs"].append(dict(LOOPFM))
    whole = exfm.run(load(tmp_path, settings))
    experiment = load(tmp_path, {**settings, "run_dir": str(tmp_path / "interrupted")})
    assert not differences(run_interrupted(experiment, 8), whole)
    marked = {name: model["serving_lookups"] for name, model in whole["models"].items()}
    assert marked == {"fm": [], "vm": ["fm.user", "fm.user (newest 3)"], "vm.control": []}
    assert whole["models"]["vm"]["parts"]["inputs"]["dense_parameters"] > 4 * 8
    assert whole["supervision"]["fm"]["vm"]["hit_rate"] > 0.9
    assert [gain["teacher"] for gain in whole["gains"]] == ["fm"]
    console = Console(file=io.StringIO(), width=100)
    console.print(result_table(whole))
    assert isinstance(console.file, io.StringIO)
    assert "vm costs lookups at serving: fm.user" in console.file.getvalue()
    report = (tmp_path / "whole" / "report.html").read_text()
    assert "Costs lookups at serving: fm.user" in report
    assert '<th scope="col" class="words">lookups at serving</th>' in report


def test_separate_jobs_with_a_delay_end_alike(tmp_path: Path) -> None:
    settings = config(tmp_path, "whole", make_log(900))
    settings["models"]["fm"]["supervision"]["delay"] = "1d"
    whole = exfm.run(load(tmp_path, settings))
    experiment = load(tmp_path, {**settings, "run_dir": str(tmp_path / "jobs")})
    store = Store(experiment.run_dir)
    open_run(experiment, store)
    plan = experiment.config.parallel.build()
    for trained, label in ((["vm", "vm.control"], []), (["fm"], []), ([], ["fm"]), (["vm", "vm.control"], [])):
        loop = StreamLoop(experiment, store, plan, lambda _: None, trained, label)
        done = loop.advance()
        assert (done == 0) == (bool(loop.waiting_for)) == (trained[:1] == ["vm"] and "fm" in loop.waiting_for)
    assert not differences(exfm.run(experiment), whole)
    assert whole["supervision"]["fm"]["vm"]["age_s"] > 86_400


def test_the_control_has_no_inputs_and_starts_from_the_rest_of_the_weights(
    ended: exfm.Experiment, tmp_path: Path
) -> None:
    experiment = ended
    model, control = (trainer_of(experiment, name).model for name in ("vm", "vm.control"))
    assert control.inputs is None and model.inputs is not None
    student, plain = model.state_dict(), control.state_dict()
    assert student.keys() - plain.keys() == {
        "inputs.components.0.maps.entity_user.weight",
        "inputs.tables.state_fm/user.vectors_RK",
        "inputs.tables.state_fm/user.count_R",
    }
    equal = {
        name for name in plain if student[name].shape == plain[name].shape and torch.equal(student[name], plain[name])
    }
    assert {name for name in plain if not name.startswith("backbone.")} <= equal
    without = experiment_dict(write_log(tmp_path / "log", make_log()), str(tmp_path / "without"))
    without["models"]["vm"] |= {"batch_size": 32, "transfer": []}
    train(load(tmp_path, without))
    actual, expected = (predictions(run, "vm.control") for run in (experiment.run_dir, str(tmp_path / "without")))
    assert all(actual[window].equals(expected[window]) for window in expected)
    taught = predictions(experiment.run_dir, "vm")
    assert not taught[3].equals(actual[3])


def test_a_snapshot_holds_what_serving_looks_up(ended: exfm.Experiment) -> None:
    experiment = ended
    snapshot = next(Store(experiment.run_dir).snapshots.newest_first("vm", 2**62))
    weights = Store(experiment.run_dir).snapshots.load_whole(snapshot.weights)
    state_RK = weights["inputs.tables.state_fm/user.vectors_RK"]
    newest: dict[int, list[float]] = {}
    batches = iter(chunks(experiment))
    users = torch.cat([batch.sparse["user"].values() for batch in batches]).tolist()
    rows = pa.concat_tables(supervision(experiment.run_dir, "fm").values())
    states, probabilities = (rows.column(name).to_pylist() for name in ("state_user", "prediction_click"))
    for user, state, probability in zip(users, states, probabilities, strict=True):
        if probability is not None:
            newest[user] = state
    assert len(newest) > 20
    expected = torch.zeros(64, 4, dtype=torch.float16)
    for user, state in newest.items():
        expected[user] = torch.tensor(state).half()
    assert torch.equal(state_RK, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "fmm"}, r"models\.vm\.inputs\.0\.teacher: no model is called 'fmm'\. Did you mean 'fm'"),
        ({"teacher": "vendor"}, r"models\.vm\.inputs\.0\.teacher: 'vendor' is a teacher from elsewhere"),
        ({"entities": ["user", "user"]}, r"inputs\.0\.entities: name each once; given: \['user', 'user'\]"),
        ({"entities": ["usr"]}, r"inputs\.0\.entities: 'fm' stores no state of 'usr'\. Did you mean 'user'"),
        ({"teacher": "vm"}, r"'vm' stores no state of 'user'. It stores none: see models\.vm\.supervision\.states"),
        (
            {"teacher": "vm", "entities": []},
            r"inputs\.0: 'vm' stores no state .*stores none, .*user, item",
        ),
        ({"name": "latest"}, r"inputs\.0.*no teacher_input is called 'latest'\. Did you mean 'latest_state'"),
        ({"name": "loopfm", "states": 0}, r"inputs\.0\.states"),
    ],
)
def test_wrong_inputs_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = config(tmp_path, "run", inputs=[LATEST | changes])
    settings["teachers"] = {"vendor": {"path": "nowhere", "predictions": {"click": {"column": "p", "kind": "logit"}}}}
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, settings)


def test_lookups_of_0_1_say_how_to_write_them(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", lookups={"fm": ["user"]})
    message = r"models\.vm.*lookups: .*inputs: \[\{name: latest_state, teacher: fm\}\]"
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, settings)


def test_an_entity_that_the_model_does_not_see_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, "run", features=["item", "price"])
    with pytest.raises(exfm.ConfigError, match=r"inputs\.0\.entities: the model does not see 'user', .*item"):
        load(tmp_path, settings)


def test_a_late_label_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, "run")
    settings["stream"]["source"]["labels"].append({"name": "buy", "delay": "2d"})
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.inputs: buy is known late.* at once: click"):
        load(tmp_path, settings)
    settings["models"]["vm"]["tasks"] = ["click"]
    assert load(tmp_path, settings).arms


def test_a_cycle_through_inputs_is_refused(tmp_path: Path) -> None:
    settings = config(tmp_path, "run")
    settings["models"]["fm"]["transfer"] = [{"name": "direct", "teacher": "vm"}]
    with pytest.raises(exfm.ConfigError, match=r"models\.(vm\.inputs|fm\.transfer): teachers form a cycle"):
        load(tmp_path, settings)
