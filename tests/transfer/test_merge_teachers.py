"""Merging of several teachers, tasks of other names, and parameters that a strategy trains itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import exfm
import exfm_plugins.backbones
import exfm_plugins.encoders
import exfm_plugins.parallel
import exfm_plugins.sources
from exfm.transfer.merge_teachers import merge_teacher_outputs
from exfm.transfer.taught_batch import TaughtBatch
from tests.training.interruption import run_interrupted
from tests.training.logs import differences, experiment_dict, load, make_log, rows_by_window, train, write_log


class Listener(exfm.DistillationStrategy):
    """Adds nothing."""

    name: ClassVar[str] = "listener"

    def loss(
        self, student: exfm.transfer.StudentOutput, teacher: exfm.transfer.TeacherOutput, labels: Mapping[str, Tensor]
    ) -> Tensor:
        return student.representation_BR.sum() * 0


def listener(student_tasks: tuple[str, ...], teacher_tasks: tuple[str, ...], **fields: Any) -> Listener:
    student = exfm.transfer.StudentSpec(student_tasks, 2, lambda: nn.Linear(2, 1))
    teacher = exfm.transfer.TeacherSpec("a", teacher_tasks)
    return Listener(exfm.transfer.TransferConfig(teacher="a", **fields), student, teacher)


def supervision(value: float, hit: list[bool], *tasks: str, width: int | None = None) -> exfm.transfer.TeacherOutput:
    size = len(hit)
    embedding = None if width is None else torch.full((size, width), value)
    return exfm.transfer.TeacherOutput(
        {task: torch.full((size,), value) for task in tasks}, {task: torch.tensor(hit) for task in tasks}, embedding
    )


def test_the_first_teacher_with_a_row_is_heard() -> None:
    strategy = listener(("click",), ("click",), fallback=("b", "c"))
    heard = merge_teacher_outputs(
        strategy,
        {
            "c": supervision(0.3, [True, True, True, False], "click", width=2),
            "a": supervision(0.1, [True, False, False, False], "click", width=2),
            "b": supervision(0.2, [True, True, False, False], "click", width=2),
        },
    )
    assert heard is not None
    assert heard.hit["click"].tolist() == [True, True, True, False]
    assert heard.probabilities["click"][:3].tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert heard.embedding is not None
    assert heard.embedding[:3, 0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_age_is_that_of_the_heard_teacher_and_tokens_are_the_students() -> None:
    strategy = listener(("click",), ("click",), fallback=("b",))
    strategy.reads_age, strategy.reads_features = True, ("user",)
    outputs = {
        "a": replace(supervision(0.1, [True, False], "click"), age_s=torch.tensor([60.0, 0.0])),
        "b": replace(supervision(0.2, [True, True], "click"), age_s=torch.tensor([5.0, 9.0])),
    }
    tokens = {"user": torch.rand(2, 3), "item": torch.rand(2, 3)}
    heard = merge_teacher_outputs(strategy, outputs)
    assert heard is not None and heard.age_s is not None and heard.age_s.tolist() == [60.0, 9.0]
    assert TaughtBatch(0, strategy, heard).with_inputs(tokens, None).teacher.tokens == {"user": tokens["user"]}
    strategy.reads_age, strategy.reads_features = False, ()
    unread = merge_teacher_outputs(strategy, outputs)
    assert unread is not None and unread.age_s is None
    assert not TaughtBatch(0, strategy, unread).with_inputs(tokens, None).teacher.tokens


def test_a_teacher_that_is_away_is_passed_over() -> None:
    strategy = listener(("click",), ("click",), fallback=("b",))
    heard = merge_teacher_outputs(strategy, {"b": supervision(0.2, [True, False], "click")})
    assert heard is not None and heard.hit["click"].tolist() == [True, False]
    assert merge_teacher_outputs(strategy, {}) is None
    assert merge_teacher_outputs(strategy, {"b": supervision(0.2, [True], "buy")}) is None


def test_tasks_go_by_the_students_names() -> None:
    strategy = listener(("click", "cart", "buy"), ("tap", "order"), tasks={"buy": "order", "cart": "order"})
    assert strategy.tasks == ("cart", "buy")
    heard = merge_teacher_outputs(strategy, {"a": supervision(0.4, [True], "tap", "order")})
    assert heard is not None and set(heard.hit) == {"cart", "buy"}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [({"clik": "tap"}, "there is no task 'clik'"), ({"click": "order"}, "there is no task 'order'")],
)
def test_a_task_that_is_not_there_is_named(tasks: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listener(("click",), ("tap",), tasks=tasks)


class Pupil(exfm.DistillationStrategy):
    """Holds a number that it trains itself towards the labels' rate."""

    name: ClassVar[str] = "pupil"

    def __init__(
        self,
        config: exfm.transfer.TransferConfig,
        student: exfm.transfer.StudentSpec,
        teacher: exfm.transfer.TeacherSpec,
    ) -> None:
        super().__init__(config, student, teacher)
        self.logit = nn.Parameter(torch.zeros(()))

    def adapt(self, teacher: exfm.transfer.TeacherOutput) -> exfm.transfer.TeacherOutput:
        return teacher

    def adapter_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.logit], lr=0.01)

    def adapter_loss(self, teacher: exfm.transfer.TeacherOutput, labels: Mapping[str, Tensor]) -> Tensor:
        return ((self.logit.sigmoid() - labels["click"].mean()) ** 2).sum()

    def loss(
        self, student: exfm.transfer.StudentOutput, teacher: exfm.transfer.TeacherOutput, labels: Mapping[str, Tensor]
    ) -> Tensor:
        return ((student.logits["click"] - self.logit.detach()) ** 2).mean()


class Recorder(exfm.DistillationStrategy):
    """Adds nothing and records its teacher output: probabilities at hits, NaN elsewhere."""

    name: ClassVar[str] = "recorder"
    recorded: ClassVar[list[Tensor]] = []

    def loss(
        self, student: exfm.transfer.StudentOutput, teacher: exfm.transfer.TeacherOutput, labels: Mapping[str, Tensor]
    ) -> Tensor:
        probability_B = teacher.probabilities["click"].masked_fill(~teacher.hit["click"], float("nan"))
        self.recorded.append(probability_B)
        return student.representation_BR.sum() * 0


def test_each_row_is_taught_by_the_fm_of_its_domain(tmp_path: Path, exfm_registry: Any) -> None:
    """Two surfaces, an FM of each, and a student of both: the FM that has the row is its teacher."""
    exfm_registry.put(
        Recorder,
        exfm_plugins.backbones,
        exfm_plugins.encoders,
        exfm_plugins.sources,
        exfm_plugins.parallel,
    )
    log = make_log()
    surface = np.random.default_rng(1).integers(0, 2, log.num_rows)
    config = experiment_dict(
        write_log(tmp_path / "log", log.append_column("surface", pa.array(surface))), str(tmp_path / "run")
    )
    config["stream"]["source"]["domain"] = "surface"
    fm, vm = config["models"].pop("fm"), config["models"]["vm"]
    config["models"] |= {name: fm | {"where": {"surface": number}} for number, name in enumerate(("feed", "search"))}
    vm |= {"control": False, "transfer": [{"name": "recorder", "teacher": "feed", "fallback": ["search"]}]}
    Recorder.recorded.clear()
    train(load(tmp_path, config))
    recorded = torch.cat(Recorder.recorded)
    assert recorded.shape[0] == log.num_rows
    for number, name in enumerate(("feed", "search")):
        rows = pa.concat_tables(rows_by_window(str(tmp_path / "run"), "supervision", name).values())
        in_domain = torch.from_numpy(surface == number)
        seen = log.filter(pa.array(in_domain.numpy())).column("example_id")
        assert rows.column("example_id").to_pylist() == seen.to_pylist()
        expected = torch.from_numpy(rows.column("prediction_click").to_numpy())
        assert expected.isfinite().float().mean() > 0.8
        torch.testing.assert_close(recorded[in_domain], expected, rtol=0, atol=0, equal_nan=True)


def test_parameters_that_a_strategy_trains_itself_resume_where_they_were(tmp_path: Path, exfm_registry: Any) -> None:
    exfm_registry.put(
        Pupil,
        exfm_plugins.backbones,
        exfm_plugins.encoders,
        exfm_plugins.sources,
        exfm_plugins.parallel,
    )
    path = write_log(tmp_path / "log", make_log())
    results = []
    for name, stop_after in (("whole", None), ("interrupted", 9)):
        config = experiment_dict(path, str(tmp_path / name))
        config["models"]["vm"]["transfer"] = [{"name": "pupil", "teacher": "fm"}]
        results.append(run_interrupted(load(tmp_path, config), stop_after))
    whole, interrupted = results
    assert not differences(whole, interrupted)
    vm, control = (results[0]["models"][name]["tasks"]["click"]["ne"] for name in ("vm", "vm.control"))
    assert vm != control
