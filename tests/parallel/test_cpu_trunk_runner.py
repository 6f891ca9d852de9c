"""The runner of a CPU divides training steps, and nothing else: neither predictions nor captured graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import exfm
from exfm.config.experiment import ModelConfig
from exfm.data.batch import Batch
from exfm.modeling.ranking_model import RankingModel
from exfm.parallel import CpuTrunkRunner, SingleProcessPlan
from exfm.parallel.cpu_trunk_runner import select_trunk_runner
from exfm_plugins.parallel.hsdp.plan import Hsdp
from tests.modeling.cases import random_batch
from tests.modeling.test_ranking_model import SCHEMA, build

EXAMPLES = 1_100


def backbone_calls(model: RankingModel, call: Callable[[Batch], Any]) -> list[int]:
    """How many examples each call of the backbone has, in order of size."""
    sizes: list[int] = []
    hook = model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[0]))
    call(model.narrow(random_batch(SCHEMA, EXAMPLES)))
    hook.remove()
    return sorted(sizes)


@pytest.mark.parametrize(("threads", "expected"), [(1, [76, 512, 512]), (2, [38, 38, 512, 512]), (3, [76, 512, 512])])
def test_a_training_step_is_divided(threads: int, expected: list[int]) -> None:
    """Three threads would have fewer than 512 examples each, so they do not share the batch."""
    model = build({"backbone": {"name": "wukong"}})
    with CpuTrunkRunner(threads).training_step(EXAMPLES) as run_trunk:
        assert backbone_calls(model, lambda batch: model(batch, run_trunk)) == expected


@pytest.mark.parametrize(("threads", "expected"), [(1, [1_100]), (2, [550, 550])])
def test_bf16_has_no_micro_batches(threads: int, expected: list[int]) -> None:
    model = build({"backbone": {"name": "wukong"}, "precision": "bf16"})
    with CpuTrunkRunner(threads).training_step(EXAMPLES) as run_trunk:
        assert backbone_calls(model, lambda batch: model(batch, run_trunk)) == expected


def test_a_backbone_that_reads_sequences_gets_them_whole() -> None:
    model = build({"backbone": {"name": "interformer"}})
    with CpuTrunkRunner(1).training_step(EXAMPLES) as run_trunk:
        assert backbone_calls(model, lambda batch: model(batch, run_trunk)) == [EXAMPLES]


def test_the_model_alone_is_whole_even_in_a_training_step() -> None:
    model = build({"backbone": {"name": "wukong"}})
    with CpuTrunkRunner(2).training_step(EXAMPLES):
        assert backbone_calls(model, model) == [EXAMPLES]


@pytest.fixture
def two_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("width", "expected"), [(16, 1), (2_048, 2)])
def test_a_step_of_little_work_has_one_thread_to_its_end(two_torch_threads: None, width: int, expected: int) -> None:
    """A hidden layer of 2,048 twice is 4 million multiplications an example."""
    model = build({"backbone": {"name": "mlp", "hidden": [width, width]}})
    batch = model.narrow(random_batch(SCHEMA, 100))
    with CpuTrunkRunner(2).training_step(100) as run_trunk:
        output = model(batch, run_trunk)
        assert torch.get_num_threads() == expected
        sum(logit.mean() for logit in output.logits.values()).backward()
        assert torch.get_num_threads() == expected
    assert torch.get_num_threads() == 2


def test_events_count_where_they_are_read() -> None:
    batch = random_batch(SCHEMA, 20)
    for config in ({"sequence_encoder": {"name": "din"}}, {"backbone": {"name": "interformer"}}):
        model = build({"backbone": {"name": "mlp"}} | config)
        _, sequences = model.featurizer(model.narrow(batch))
        few = {name: sequence.slice(0, 5) for name, sequence in sequences.items()}
        assert sum(sequence.values_ED.shape[0] for sequence in few.values())
        assert model.multiplications(20, few) < model.multiplications(20, sequences)
        assert model.multiplications(20, few) > 20 * sum(weight.numel() for weight in model.backbone.parameters())


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("examples", [EXAMPLES, 100])
def test_settings_are_as_before_after_a_step(threads: int, examples: int) -> None:
    before = torch.get_num_threads(), torch.is_autocast_cache_enabled()
    with pytest.raises(ValueError, match="in the step"), CpuTrunkRunner(threads).training_step(examples):
        raise ValueError("in the step")
    assert (torch.get_num_threads(), torch.is_autocast_cache_enabled()) == before


def test_only_a_process_alone_on_a_cpu_divides_its_steps() -> None:
    several = exfm.parallel.ProcessGroup()
    several.world_size = 2
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert select_trunk_runner(cpu, exfm.parallel.ProcessGroup()) == CpuTrunkRunner(torch.get_num_threads())
    for device, group in ((cpu, several), (cuda, exfm.parallel.ProcessGroup())):
        assert type(select_trunk_runner(device, group)) is exfm.parallel.TrunkRunner


def test_a_plan_chooses_the_runner() -> None:
    class Whole(SingleProcessPlan):
        name = "whole"

        @property
        def trunk_runner(self) -> exfm.parallel.TrunkRunner:
            return exfm.parallel.TrunkRunner()

    model = build({"backbone": {"name": "wukong"}})
    plan = Whole(Whole.Config(device="cpu"))
    with plan.trunk_runner.training_step(EXAMPLES) as run_trunk:
        assert backbone_calls(model, lambda batch: model(batch, run_trunk)) == [EXAMPLES]


def test_blocks_that_are_not_reentrant_are_called_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 gathers a block's weights in hooks that threads would run at once."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    plan = Hsdp(Hsdp.Config(device="cpu"))
    try:
        model = RankingModel(ModelConfig.model_validate({"backbone": {"name": "wukong"}}), SCHEMA, SCHEMA.tasks)
        plan.parallelize(model, exfm.parallel.TableOptimizer())
        examples = 2 * EXAMPLES
        with plan.trunk_runner.training_step(examples) as run_trunk:
            output = model(model.narrow(random_batch(SCHEMA, examples)), run_trunk)
            sum(logit.square().mean() for logit in output.logits.values()).backward()
        assert all(parameter.grad is not None for parameter in model.backbone.parameters())
    finally:
        plan.process_group.close()
