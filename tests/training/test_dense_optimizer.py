"""Warm-up, schedule, clipping and averaging of the dense layers: against torch and by hand, and over interruptions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import exfm
from exfm.config.training_sections import DenseOptimizer
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows
from exfm.distributed.chunk_exchange import Accumulation
from exfm.interfaces.data_source import Shard
from exfm.interfaces.local_shards import whole_tensors
from exfm.learning.trainer import Trainer
from exfm.optimization.learning_rate import learning_rate
from exfm.transfer.build import teacher_specs
from tests.training.interruption import StopError
from tests.training.logs import (
    differences,
    experiment_dict,
    load,
    make_log,
    predictions,
    rows_by_window,
    supervision,
    train,
    write_log,
)

STEPS, DECAY, MAX_NORM = 12, 0.8, 0.15
SCHEDULES = st.builds(
    lambda name, steps, floor: {"name": name, "steps": steps, "floor": floor},
    st.sampled_from(["cosine", "linear", "inverse_sqrt"]),
    st.integers(1, 50),
    st.floats(0, 1),
)


def config_of(**fields: Any) -> DenseOptimizer:
    return DenseOptimizer.model_validate({"lr": 0.02, **fields})


@pytest.mark.parametrize("warmup", [None, 1, 5])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_rates_are_those_of_torchs_schedulers(name: str, warmup: int | None) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    if name == "cosine":
        scheduler: Any = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.02 * 0.25)
    else:
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.25, 10)
    config = config_of(warmup=warmup, schedule={"name": name, "steps": 10, "floor": 0.25})
    first = warmup or 1  # the last step of a warm-up is the schedule's first
    for step in range(first, first + 11):
        assert learning_rate(config, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert learning_rate(config, first + 10**9) == pytest.approx(0.02 * 0.25)
    for step in range(1, first):
        assert learning_rate(config, step) == pytest.approx(0.02 * step / first)


def test_the_inverse_root_is_that_of_transformers() -> None:
    """lr * min(step / warmup, sqrt(warmup / step)), of arXiv 1706.03762."""
    config = config_of(warmup=7, schedule={"name": "inverse_sqrt", "steps": 7, "floor": 0})
    for step in range(1, 100):
        assert learning_rate(config, step) == pytest.approx(0.02 * min(step / 7, math.sqrt(7 / step)))


@given(SCHEDULES, st.integers(1, 20))
def test_a_rate_rises_to_lr_and_falls_to_its_floor(schedule: dict[str, Any], warmup: int) -> None:
    rates = [learning_rate(config_of(warmup=warmup, schedule=schedule), step) for step in range(1, 120)]
    peak = warmup - 1
    assert rates[peak] == max(rates) == 0.02
    assert all(left < right for left, right in pairwise(rates[: peak + 1]))
    falling = rates[peak:]
    assert all(left >= right - 1e-12 for left, right in pairwise(falling))
    assert min(falling) >= 0.02 * schedule["floor"] - 1e-12


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(rows=700))


def small(log: str, run_dir: Path, dense: Mapping[str, Any]) -> dict[str, Any]:
    """A teacher of two tasks, one of them known late, and its student, with a head for soft labels and a control."""
    config = experiment_dict(log, str(run_dir), labels=("click", "buy"))
    for model in config["models"].values():
        model |= {"backbone": {"name": "dlrm"}, "batch_size": 32, "optimizer": {"dense": {"accumulate": 2, **dense}}}
    return config


class Training:
    """A trainer of the student, and the batches of a log, two of which make a step."""

    def __init__(self, folder: Path, log: str, **dense: Any) -> None:
        experiment = load(folder, small(log, folder / "run", dense))
        arm = next(arm for arm in experiment.arms if arm.name == "vm")
        self.trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), experiment.config.parallel.build(), 0)
        reader = ChunkReader(experiment.source, experiment.schema, experiment.config.stream, {}, Shard())
        self.batches: list[Batch] = []
        for window in stream_windows(experiment.source, experiment.config.stream.window):
            self.batches += [self.trainer.model.narrow(chunk.batch) for chunk in reader.read(window)]

    def steps(self, tasks: tuple[str, ...] = ("click",), count: int = STEPS) -> None:
        for number in range(2 * count):
            batch = self.batches[number % len(self.batches)]
            accumulation = Accumulation(number % 2 == 0, number % 2 == 1, 2)
            self.trainer.step(batch, (), tasks, accumulation=accumulation)

    def before_step(self, call: Callable[[], None]) -> None:
        self.trainer.dense.optimizer.register_step_pre_hook(lambda *_: call())

    def after_step(self, call: Callable[[], None]) -> None:
        self.trainer.dense.optimizer.register_step_post_hook(lambda *_: call())

    def weights(self) -> dict[str, Tensor]:
        """A copy of the published weights."""
        return {name: value.clone() for name, value in whole_tensors(self.trainer.weights()).items()}


def assert_equal(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    wrong = [name for name in expected if not torch.equal(actual[name].nan_to_num(), expected[name].nan_to_num())]
    assert wrong == []


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_clipping_is_torchs_over_all_dense_gradients(tmp_path: Path, log: str, optimizer: str) -> None:
    clipped = Training(tmp_path, log, name=optimizer, clip_norm=MAX_NORM)
    by_hand = Training(tmp_path, log, name=optimizer)
    norms: list[float] = []
    parameters = by_hand.trainer.dense.parameters
    by_hand.before_step(lambda: norms.append(float(nn.utils.clip_grad_norm_(parameters, MAX_NORM))))
    clipped.steps()
    by_hand.steps()
    assert len(norms) == STEPS and min(norms) < MAX_NORM < max(norms), norms
    assert_equal(clipped.weights(), by_hand.weights())


def test_a_step_has_the_rate_of_its_number(tmp_path: Path, log: str) -> None:
    fields = {"warmup": 4, "schedule": {"name": "cosine", "steps": 6}}
    scheduled = Training(tmp_path, log, **fields)
    by_hand = Training(tmp_path, log)
    rates = iter([learning_rate(DenseOptimizer.model_validate(fields), step) for step in range(1, STEPS + 1)])

    def set_rate() -> None:
        rate = next(rates)
        for group in by_hand.trainer.dense.optimizer.param_groups:
            group["lr"] = rate

    by_hand.before_step(set_rate)
    scheduled.steps()
    by_hand.steps()
    assert next(rates, None) is None
    assert_equal(scheduled.weights(), by_hand.weights())


def test_the_average_is_that_of_the_weights_after_each_step(tmp_path: Path, log: str) -> None:
    averaged, plain = Training(tmp_path, log, ema=DECAY), Training(tmp_path, log)
    after: list[dict[str, Tensor]] = []
    plain.after_step(lambda: after.append(plain.weights()))
    averaged.steps()
    plain.steps()
    assert_equal(averaged.weights() | whole_tensors(averaged.trainer.dense.average.trained()), plain.weights())
    published, trained = averaged.weights(), set(whole_tensors(averaged.trainer.dense.average.trained()))
    parameters = dict(averaged.trainer.model.named_parameters())
    assert trained == {name for name in parameters if "embedding_bags" not in name}
    for name in trained:
        weighted = sum(DECAY ** (STEPS - 1 - step) * weights[name].double() for step, weights in enumerate(after))
        expected = weighted / sum(DECAY**step for step in range(STEPS))
        torch.testing.assert_close(published[name].double(), expected, rtol=1e-4, atol=1e-6, msg=name)
    assert any(not torch.equal(published[name], after[-1][name]) for name in trained)


def test_a_head_that_starts_late_is_published_at_its_rate(tmp_path: Path, log: str) -> None:
    """Its bias is no average with the zero that it had before its first labels."""
    training = Training(tmp_path, log, ema=0.999)
    training.steps(("click",), 10)
    training.steps(("click", "buy"), 1)
    published, trained = training.weights(), whole_tensors(training.trainer.dense.average.trained())
    (bias,) = (name for name in trained if "buy" in name and name.endswith("bias"))
    assert abs(trained[bias].item()) > 0.5
    torch.testing.assert_close(published[bias], trained[bias], rtol=0, atol=0.01)


def test_a_state_without_a_number_of_steps_can_be_read(tmp_path: Path, log: str) -> None:
    """As versions before wrote it; a warm-up then begins with the next step."""
    before = Training(tmp_path, log, name="sgd")
    before.steps()
    weights, state = before.weights(), whole_tensors(before.trainer.training_state())
    assert int(state.pop("steps")) == STEPS and not any(name.startswith("trained.") for name in state)
    after = Training(tmp_path, log, name="sgd", warmup=10**9, ema=DECAY)
    after.trainer.load_weights(weights)
    after.trainer.load_training_state(state)
    assert_equal(after.weights(), weights)
    after.steps(count=1)
    assert int(whole_tensors(after.trainer.training_state())["steps"]) == 1


def run_in_pieces(experiment: exfm.Experiment) -> dict[str, Any]:
    """Runs an experiment that is stopped in the second chunk after each window that it commits."""
    while True:
        chunks = 0

        def stop(_: object) -> None:
            nonlocal chunks
            chunks += 1
            if chunks == 4:
                raise StopError

        try:
            return exfm.run(experiment, stop)
        except StopError:
            continue


FIELDS: dict[str, dict[str, Any]] = {
    "warmup": {"warmup": 30},
    "schedule": {"schedule": {"name": "inverse_sqrt", "steps": 5}},
    "clip_norm": {"clip_norm": 0.1},
    "ema": {"ema": 0.9},
    "all": {
        **{"name": "sgd", "lr": 0.1, "warmup": 9, "schedule": {"name": "cosine", "steps": 20}},
        **{"clip_norm": 0.1, "ema": 0.9},
    },
}


def last_snapshots(run_dir: Path) -> dict[str, Tensor]:
    """All tensors of the last snapshot of each model."""
    tensors: dict[str, Tensor] = {}
    for folder in sorted((run_dir / "snapshots").iterdir()):
        for file in ("model", "training"):
            (path,) = max(folder.iterdir()).glob(f"{file}-*.safetensors")
            tensors |= {f"{folder.name}/{file}/{name}": value for name, value in load_file(path).items()}
    return tensors


# Those that `all` has are tried alone in a campaign.
@pytest.mark.parametrize(
    "field", [field if field == "all" else pytest.param(field, marks=pytest.mark.soak) for field in FIELDS]
)
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, log: str, field: str) -> None:
    whole = exfm.run(load(tmp_path, small(log, tmp_path / "whole", FIELDS[field])))
    pieces = run_in_pieces(load(tmp_path, small(log, tmp_path / "pieces", FIELDS[field])))
    assert differences(pieces, whole) == []
    expected = last_snapshots(tmp_path / "whole")
    assert_equal(last_snapshots(tmp_path / "pieces"), expected)
    assert min(int(value) for name, value in expected.items() if name.endswith("training/steps")) > 20


def test_an_average_is_published_and_changes_no_training(tmp_path: Path, log: str) -> None:
    """Predictions of the log and of students are of the weights themselves; those of a labeller are of the averages."""
    for name, dense in (("plain", {}), ("averaged", {"ema": 0.9})):
        config = small(log, tmp_path / name, dense)
        config["models"]["late"] = {**config["models"]["fm"], "supervision": {"delay": "1d"}}
        config["models"]["vm"]["transfer"].append({"name": "auxiliary_head", "teacher": "late"})
        config["models"]["vm"]["optimizer"] = {}
        train(load(tmp_path, config))
    plain, averaged = (str(tmp_path / name) for name in ("plain", "averaged"))
    for folder in (predictions, supervision):
        assert folder(averaged, "fm") == folder(plain, "fm")
    assert predictions(averaged, "late") == predictions(plain, "late")
    labelled, expected = (supervision(run_dir, "late")[3] for run_dir in (averaged, plain))
    assert labelled.column("example_id") == expected.column("example_id")
    assert labelled.column("prediction_click") != expected.column("prediction_click")
    with torch.no_grad():
        first, second = (last_snapshots(tmp_path / name) for name in ("averaged", "plain"))
    for name, trained in first.items():
        if name.startswith("fm/training/trained."):
            raw = name.replace("training/trained.", "model/")
            assert torch.equal(trained, second[raw]) and not torch.equal(trained.nan_to_num(1.0), first[raw])


def test_fields_may_change_in_a_run(tmp_path: Path, log: str) -> None:
    """Switched off, a run goes on with the weights themselves, and publishes them."""
    config = small(log, tmp_path / "run", {"ema": 0.9, "warmup": 5})
    experiment = load(tmp_path, config)
    stopped = 0

    def stop(_: object) -> None:
        nonlocal stopped
        stopped += 1
        if stopped == 6:
            raise StopError

    with pytest.raises(StopError):
        exfm.run(experiment, stop)
    config = small(log, tmp_path / "run", {"clip_norm": 1.0, "schedule": {"name": "linear", "steps": 50}})
    results = exfm.run(load(tmp_path, config))
    notes = "\n".join(results["notes"])
    assert set(re.findall(r"fm\.optimizer\.dense\.(\w+) is", notes)) == {"ema", "warmup", "clip_norm", "schedule"}
    assert not any("/training/trained." in name for name in last_snapshots(tmp_path / "run"))
    assert len(rows_by_window(str(tmp_path / "run"), "predictions", "vm")) == 6
