"""`ple` against the published equations, example by example and expert by expert, and the kit of backbones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.backbones
from exfm.components import BackboneInputs
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.ple.model import PLE
from tests.plugins.checks import Net

TASKS = ("click", "buy", "like")


def build(tokens: int, dim: int, tasks: int, **fields: object) -> PLE:
    torch.manual_seed(0)
    names = tuple(f"f{number}" for number in range(tokens))
    return PLE(PLE.Config.model_validate(fields), BackboneInputs(names, dim, tasks=TASKS[:tasks])).double()


class TestPLE(BackboneTests):
    component = PLE
    plugin = exfm_plugins.backbones
    configs = ({}, {"levels": 1, "shared_experts": 2, "hidden": [6]}, {"levels": 3, "task_experts": 2})


def expert_output(expert: Net, x: Tensor) -> Tensor:
    for layer in expert.children():
        x = layer.weight @ x + layer.bias if isinstance(layer, nn.Linear) else x.clamp(min=0)
    return x


def mixed(gate: Net, x: Tensor, outputs: list[Tensor]) -> Tensor:
    powers = [(row @ x).exp() for row in gate.linear.weight]
    return sum(power / sum(powers) * output for power, output in zip(powers, outputs, strict=True))


def by_the_paper(module: Net, example_ND: Tensor, tasks: int) -> list[Tensor]:
    """The representation of each task, the streams by name."""
    names = [*TASKS[:tasks], "shared"]
    streams = {name: torch.cat(list(example_ND)) for name in names}
    for level in module.levels:
        outputs = {
            name: [expert_output(expert, streams[name]) for expert in experts]
            for name, experts in zip(names, level.experts, strict=True)
        }
        later = {
            task: mixed(gate, streams[task], outputs[task] + outputs["shared"])
            for task, gate in zip(TASKS[:tasks], level.gates, strict=True)
        }
        if level is not module.levels[-1]:
            everything = [output for name in names for output in outputs[name]]
            later["shared"] = mixed(level.shared_gate, streams["shared"], everything)
        streams = later
    return [streams[task] for task in TASKS[:tasks]]


@given(
    tokens=st.integers(1, 3),
    dim=st.integers(1, 4),
    tasks=st.integers(1, 3),
    levels=st.integers(1, 3),
    counts=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=2),
)
def test_equals_the_published_equations(
    tokens: int, dim: int, tasks: int, levels: int, counts: tuple[int, int], hidden: list[int]
) -> None:
    module = build(tokens, dim, tasks, levels=levels, shared_experts=counts[0], task_experts=counts[1], hidden=hidden)
    tokens_BND = torch.randn(3, tokens, dim, dtype=torch.float64)
    expected = torch.stack([torch.stack(by_the_paper(module, example_ND, tasks)) for example_ND in tokens_BND])
    assert expected.shape == (3, tasks, hidden[-1])
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


def reached(module: Net, task: int) -> set[str]:
    """The parameters that a task's loss moves."""
    tokens_BND = torch.randn(64, 3, 4, dtype=torch.float64)
    module(tokens_BND, {})[:, task].square().sum().backward()
    return {
        name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }


def test_of_one_level_a_tasks_loss_reaches_no_experts_and_gates_of_others() -> None:
    names = reached(build(3, 4, 3, levels=1, hidden=[8]), 1)
    assert {name for name in names if ".gates." in name} == {"levels.0.gates.1.linear.weight"}
    assert {name.split(".")[3] for name in names if ".experts." in name} == {"1", "3"}  # the task's, and the shared


def test_of_several_levels_it_reaches_others_experts_through_the_shared_stream_and_never_their_gates() -> None:
    names = reached(build(3, 4, 3, levels=2, hidden=[8]), 1)
    assert {name for name in names if ".gates." in name} == {
        "levels.0.gates.1.linear.weight",
        "levels.1.gates.1.linear.weight",
    }
    assert "levels.0.shared_gate.linear.weight" in names
    assert {name.split(".")[3] for name in names if name.startswith("levels.0.experts.")} == {"0", "1", "2", "3"}
    assert {name.split(".")[3] for name in names if name.startswith("levels.1.experts.")} == {"1", "3"}


def test_flops_are_those_of_the_docstring() -> None:
    module = build(5, 6, 2, levels=2, shared_experts=3, task_experts=2, hidden=[10, 4]).float()
    tasks, single, shared, flops = 2, 2, 3, 0
    for width, last in ((5 * 6, False), (4, True)):
        experts = tasks * single + shared
        flops += experts * 2 * (width * 10 + 10 * 4) + 2 * tasks * (single + shared) * (width + 4)
        flops += 0 if last else 2 * experts * (width + 4)
    assert count_flops(lambda: module(torch.zeros(7, 5, 6), {})) == 7 * flops


def test_without_tasks_it_is_refused() -> None:
    with pytest.raises(ValueError, match="ple: it needs the model's tasks"):
        PLE(PLE.Config(), BackboneInputs(("user", "item"), 8))


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"task_experts": 0}, {"hidden": ()}, {"activation": "tanh"}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PLE.Config.model_validate(wrong)
