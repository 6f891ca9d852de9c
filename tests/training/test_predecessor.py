"""A window is held where the model predicts its last rows worse than the newest published snapshot does."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.config.training_sections import GateConfig
from exfm.evaluation.metrics import Moments
from exfm.serving.predict import predict
from exfm.storage import snapshots
from exfm.supervision.store import Store
from exfm.training.gate import Comparison, GateHistory, PairedScores, judge
from tests.processes import torchrun
from tests.training import parallel_worker
from tests.training.interruption import StopError
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, predictions, train, write_log
from tests.training.test_gate import GATE, WINDOW, moments

CHANGE = 6
"""The window of half a day with which the stream, or the training, changes for good."""

PAIR_ALONE = {"ne_tolerance": None, "calibration": [0.0, 100.0]}
ROWS = 512

Exfm = Callable[..., Any]


def harder_log() -> pa.Table:
    """About 1,200 rows in each of 12 windows; items from 15 on are a coin's toss, and most are from the seventh on."""
    log, random = make_log(14_400), np.random.default_rng(1)
    windows = (log["event_time"].cast(pa.int64()).to_numpy() - START_US) // (DAY_US // 2)
    tossed = random.random(log.num_rows) < np.where(windows < CHANGE, 0.2, 0.8)
    item = log["item"].to_numpy() % 15 + np.where(tossed, 15, 0)
    logit = np.where(tossed, 0, 4 * np.sin(log["user"].to_numpy()) + 4 * np.cos(item))
    click = (random.random(log.num_rows) < 1 / (1 + np.exp(-logit))).astype(np.int8)
    for name, values in {"item": item, "click": click}.items():
        log = log.set_column(log.schema.names.index(name), name, pa.array(values))
    return log


def config(folder: Path, gate: dict[str, Any], log: Path | None = None) -> dict[str, Any]:
    """A gated model alone."""
    path = folder / "log" if log is None else log
    settings = experiment_dict(str(path) if path.exists() else write_log(path, harder_log()), str(folder / "run"))
    settings["stream"] |= {"window": "12h", "chunk_rows": 512}
    fm = {"backbone": {"name": "dlrm"}, "embedding_dim": 8, "batch_size": 64}
    fm["optimizer"] = {"dense": {"lr": 0.003}, "tables": {"lr": 0.2}}
    settings["models"] = {"fm": fm | {"gate": {"compared_rows": ROWS, **gate}}}
    return settings


@pytest.fixture(scope="module", autouse=True)
def nothing_is_retired() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots, "READING_S", math.inf)
        patch.setattr(snapshots, "LEAVING", 100)
        yield


@pytest.fixture(scope="module")
def drifting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that asks the pair alone, over a stream that gets harder."""
    folder = tmp_path_factory.mktemp("drifting")
    train(load(folder, config(folder, PAIR_ALONE)))
    return folder


def comparisons(run_dir: Path, model: str = "fm") -> dict[int, Comparison | None]:
    commits = Store(str(run_dir)).log.commits("train", model)
    return {commit.window.index: Comparison.from_counters(commit.counters) for commit in commits}


def held(run_dir: Path) -> dict[int, str]:
    committed = Store(str(run_dir)).snapshots.committed("fm")
    return {snapshot.version: snapshot.held["click"] for snapshot in committed if snapshot.held}


def test_a_stream_that_gets_harder_is_published_by_the_pair(drifting: Path, tmp_path: Path) -> None:
    assert held(drifting / "run") == {}
    train(load(tmp_path, config(tmp_path, {"windows": 2}, drifting / "log")))
    reasons = held(tmp_path / "run")
    assert reasons.keys() == set(range(CHANGE, 12))  # the windows before do not know of the change
    assert "or the rows are harder to predict" in reasons[CHANGE]


def test_a_rate_that_is_too_high_is_held_whatever_the_stream_does(drifting: Path, tmp_path: Path) -> None:
    """The rate changes with the stream: NE of windows rises for two reasons, and the pair sees the second alone."""
    settings = config(tmp_path, PAIR_ALONE, drifting / "log")

    def stop(progress: Any) -> None:
        if progress.window.index == CHANGE:
            raise StopError

    with pytest.raises(StopError):
        exfm.run(load(tmp_path, settings), stop)
    rates = ("models.fm.optimizer.dense.lr=0.1", "models.fm.optimizer.tables.lr=1.0")
    train(load(tmp_path, settings, *rates))
    reasons, compared = held(tmp_path / "run"), comparisons(tmp_path / "run")
    assert CHANGE in reasons and "at most 3% may be" in reasons[CHANGE]
    published = 0
    for window in range(1, 12):
        comparison = compared[window]
        assert comparison is not None and comparison.version == published  # the newest, however old it is
        excess = comparison.tasks["click"].excess
        assert excess is not None and (excess > 0.03) == (window in reasons)
        published = published if window in reasons else window


def ne(rows: pa.Table, predicted: str = "prediction_click") -> float:
    label, predictions = (rows[name].to_numpy().astype(np.float64) for name in ("label_click", predicted))
    loss = -np.mean(np.where(label > 0, np.log(predictions), np.log1p(-predictions)))
    rate = label.mean()
    return float(loss / -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate)))


def test_the_figures_are_those_of_two_predictions_of_the_same_rows(
    drifting: Path, exfm_cli: Exfm, tmp_path: Path
) -> None:
    """Computed again from the predictions file of the window and from `exfm predict` of the snapshot."""
    window, comparison = 8, comparisons(drifting / "run")[8]
    assert comparison is not None and comparison.version == 7
    pair, out = comparison.tasks["click"], str(tmp_path / "out.parquet")
    outcome = exfm_cli("predict", str(drifting / "test.yaml"), "--model", "fm", "--out", out, "--at", "7")
    assert outcome.status == 0, outcome.err
    rows = predictions(str(drifting / "run"), "fm")[window]
    examples = pair.model.examples
    assert ROWS <= examples < ROWS + 64 and pair.predecessor.examples == examples
    last = rows.slice(rows.num_rows - examples)
    by_snapshot = pq.read_table(out).to_pandas().set_index("example_id")["prediction_click"]
    last = last.append_column("snapshot", pa.array(by_snapshot.loc[last["example_id"].to_numpy()].to_numpy()))
    assert pair.model.ne == pytest.approx(ne(last), rel=1e-6)
    assert pair.predecessor.ne == pytest.approx(ne(last, "snapshot"), rel=1e-5)
    outcome = exfm_cli("snapshots", str(drifting / "run"), "--json")
    listed = json.loads(outcome.out)[window]["predecessor"]
    assert listed["version"] == 7 and listed["tasks"]["click"]["ne"] == pair.model.ne
    assert listed["tasks"]["click"]["predecessor_ne"] == pair.predecessor.ne
    assert f"{pair.excess:+.1%}" in exfm_cli("snapshots", str(drifting / "run")).out


def test_a_resumed_run_compares_as_the_undisturbed_run(drifting: Path, tmp_path: Path) -> None:
    experiment = load(tmp_path, config(tmp_path, PAIR_ALONE, drifting / "log"))
    for window in (3, 9):

        def stop(progress: Any, last: int = window) -> None:
            if progress.window.index == last:
                raise StopError

        with pytest.raises(StopError):
            exfm.run(experiment, stop)
    train(experiment)
    assert comparisons(tmp_path / "run") == comparisons(drifting / "run")


@pytest.mark.parametrize("plan", [pytest.param(plan, marks=pytest.mark.soak) for plan in ("ddp", "hsdp")])
def test_two_processes_compare_the_same_rows(drifting: Path, tmp_path: Path, plan: str) -> None:
    settings = config(tmp_path, PAIR_ALONE, drifting / "log") | {"parallel": {"name": plan}}
    path = tmp_path / "two.yaml"
    path.write_text(yaml.safe_dump(settings))
    job = {"config": str(path), "overrides": [], "log": [], "evaluate": False}
    torchrun(parallel_worker.main, [job], tmp_path / "killed", processes=2)
    expected = comparisons(drifting / "run")
    for window, comparison in comparisons(tmp_path / "run").items():
        alone = expected[window]
        assert (comparison is None) == (alone is None) == (window == 0)
        if comparison is not None and alone is not None:
            two, single = comparison.tasks["click"], alone.tasks["click"]
            assert comparison.version == alone.version and two.model.examples == single.model.examples
            assert two.model.ne == pytest.approx(single.model.ne, rel=1e-3)
            assert two.predecessor.ne == pytest.approx(single.predecessor.ne, rel=1e-3)


@pytest.mark.soak  # a long stream
def test_a_student_is_compared_as_it_is_served(drifting: Path, tmp_path: Path) -> None:
    """Vectors that transfer adds to its rows are folded into its snapshots: adding them twice would change both."""
    settings = config(tmp_path, {}, drifting / "log")
    settings["models"]["fm"] = {
        **settings["models"]["fm"],
        "gate": None,
        "supervision": {"states": {"user": ["user"]}},
    }
    settings["models"]["vm"] = {
        **{"backbone": {"name": "mlp"}, "embedding_dim": 8, "batch_size": 64, "gate": {"compared_rows": ROWS}},
        "transfer": [{"name": "compact_features", "teacher": "fm"}],
    }
    train(load(tmp_path, settings))
    experiment, window = load(tmp_path, settings), 5
    comparison = comparisons(tmp_path / "run", "vm")[window]
    assert comparison is not None and comparison.version == 4
    out = tmp_path / "out.parquet"
    predict(experiment, "vm", str(out), at="4")
    by_snapshot = pq.read_table(out).to_pandas().set_index("example_id")["prediction_click"]
    rows, pair = predictions(str(tmp_path / "run"), "vm")[window], comparison.tasks["click"]
    last = rows.slice(rows.num_rows - pair.model.examples)
    last = last.append_column("snapshot", pa.array(by_snapshot.loc[last["example_id"].to_numpy()].to_numpy()))
    assert pair.predecessor.ne == pytest.approx(ne(last, "snapshot"), rel=1e-5)


def pair(model: float, predecessor: float, examples: int = 1_000) -> Comparison:
    return Comparison(3, {"click": PairedScores(moments(model, examples=examples), moments(predecessor))})


EARLY = GateHistory([], {})
"""Before the first published windows: no check but the pair judges."""


@given(st.floats(0.3, 1.5), st.floats(0.3, 1.5), st.floats(0.01, 0.3))
def test_a_pair_holds_exactly_where_the_model_is_worse_by_more(model: float, before: float, tolerance: float) -> None:
    if abs(model - before * (1 + tolerance)) > 1e-9:
        gate = GATE.model_copy(update={"predecessor_tolerance": tolerance})
        reasons = judge(gate, WINDOW, {"click": moments(model)}, EARLY, pair(model, before))
        assert bool(reasons) == (model > before * (1 + tolerance))


def test_the_checks_that_can_judge_decide() -> None:
    stands, good = {"click": "as before"}, {"click": moments(0.8)}
    usual = [{"click": moments(0.8)}] * 2
    few = pair(2.0, 0.8, examples=300)
    assert judge(GATE, WINDOW, good, GateHistory([], stands), few) == stands  # no check can judge
    assert judge(GATE, WINDOW, good, GateHistory([], stands), pair(0.8, 0.8)) == {}
    assert judge(GATE, WINDOW, good, GateHistory(usual, stands), few) == {}  # the windows before can
    bad_rows = {"click": moments(0.8, examples=300)}
    assert judge(GATE, WINDOW, bad_rows, GateHistory(usual, {}), pair(2.0, 0.8)) != {}  # the pair can


def test_either_check_holds_and_the_other_helps_to_tell_why() -> None:
    usual = GateHistory([{"click": moments(0.8)}] * 2, {})
    harder = judge(GATE, WINDOW, {"click": moments(1.0)}, usual, pair(0.9, 1.1))["click"]
    assert "its NE of click is 1.0000, above 0.8800" in harder and "of snapshot 3 1.1000: so the labels have" in harder
    worse = judge(GATE, WINDOW, {"click": moments(0.8)}, usual, pair(0.85, 0.8))["click"]
    assert "the published windows" not in worse and "of snapshot 3 0.8000: 6.2% more" in worse
    off = GATE.model_copy(update={"predecessor_tolerance": None, "ne_tolerance": None})
    assert judge(off, WINDOW, {"click": moments(5.0)}, usual, pair(5.0, 0.8)) == {}


def test_a_single_class_is_not_compared() -> None:
    none = Moments(1_000, 0, 50.0, 250.0)
    comparison = Comparison(3, {"click": PairedScores(none, none)})
    assert comparison.tasks["click"].excess is None
    assert judge(GateConfig(windows=2), WINDOW, {"click": moments(0.8)}, EARLY, comparison) == {}
