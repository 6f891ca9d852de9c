"""`mmoe` against the published equations, example by example and expert by expert, and the kit of backbones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import exfm_plugins.backbones
from exfm.components import BackboneInputs, ComponentSpec
from exfm.config.experiment import ModelConfig
from exfm.layers import count_flops
from exfm.testing import BackboneTests
from exfm_plugins.backbones.mmoe.model import MMoE
from tests.plugins.checks import Net

TASKS = ("click", "items", "buy")


def build(tokens: int, dim: int, tasks: int, **fields: object) -> MMoE:
    torch.manual_seed(0)
    names = tuple(f"f{number}" for number in range(tokens))
    return MMoE(MMoE.Config.model_validate(fields), BackboneInputs(names, dim, tasks=TASKS[:tasks])).double()


class TestMMoE(BackboneTests):
    component = MMoE
    plugin = exfm_plugins.backbones
    configs = (
        {},
        {"experts": 3, "expert": {"name": "dcn_v2", "layers": 1}},
        {"expert": {"name": "wukong", "layers": 1}},
    )


def by_the_paper(module: Net, example_ND: Tensor) -> list[Tensor]:
    """The representation of each task."""
    x = torch.cat(list(example_ND))
    outputs = []
    for expert in module.experts:
        hidden = x
        for layer in expert.deep:
            hidden = hidden.clamp(min=0) if not hasattr(layer, "weight") else layer.weight @ hidden + layer.bias
        outputs.append(hidden)
    representations = []
    for gate in module.gates.values():
        powers = [(row @ x).exp() for row in gate.linear.weight]
        weights = [power / sum(powers) for power in powers]
        representations.append(sum(weight * output for weight, output in zip(weights, outputs, strict=True)))
    return representations


@given(
    batch=st.integers(1, 4),
    tokens=st.integers(1, 4),
    dim=st.integers(1, 4),
    tasks=st.integers(1, 3),
    experts=st.integers(2, 4),
    hidden=st.lists(st.integers(1, 5), min_size=1, max_size=2),
)
def test_equals_the_published_equations(
    batch: int, tokens: int, dim: int, tasks: int, experts: int, hidden: list[int]
) -> None:
    module = build(tokens, dim, tasks, experts=experts, expert={"name": "mlp", "hidden": hidden})
    tokens_BND = torch.randn(batch, tokens, dim, dtype=torch.float64)
    expected = torch.stack([torch.stack(by_the_paper(module, example_ND)) for example_ND in tokens_BND])
    assert expected.shape == (batch, tasks, module.output_dim)
    torch.testing.assert_close(module(tokens_BND, {}), expected, rtol=1e-9, atol=1e-9)


def test_a_tasks_loss_reaches_its_gate_alone_and_every_expert() -> None:
    module = build(3, 4, 3)
    module(torch.randn(5, 3, 4, dtype=torch.float64), {})[:, 1].square().sum().backward()
    moved = {
        name for name, parameter in module.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    gates = {name for name in moved if name.startswith("gates.")}
    assert gates == {"gates.task_items.linear.weight"}
    assert {name.split(".")[1] for name in moved - gates} == {"0", "1", "2", "3"}


def test_experts_start_from_different_weights() -> None:
    first, second = build(3, 4, 2, experts=2).experts
    assert not any(
        torch.equal(left, right)
        for left, right in zip(first.parameters(), second.parameters(), strict=True)
        if left.dim() > 1
    )


def test_flops_are_those_of_the_docstring() -> None:
    module = build(5, 6, 2, experts=3, expert={"name": "mlp", "hidden": [10, 4]}).float()
    width, mlp = 5 * 6, 2 * (5 * 6 * 10 + 10 * 4)
    assert count_flops(lambda: module(torch.zeros(7, 5, 6), {})) == 7 * (3 * mlp + 2 * 2 * 3 * (width + 4))


def test_inside_another_component_it_is_refused() -> None:
    spec = ModelConfig.model_validate({"backbone": {"name": "pyramid", "interaction": {"name": "mmoe"}}}).backbone
    assert isinstance(spec, ComponentSpec)
    with pytest.raises(ValueError, match="mmoe: it needs the model's tasks"):
        spec.build(BackboneInputs(("user", "item"), 8, tasks=("click",)))


@pytest.mark.parametrize(
    ("expert", "words"),
    [
        ("gem", "expert 'gem' reads raw sequences; choose a backbone that reads tokens"),
        ("mmoe", "needs the model's tasks"),
    ],
)
def test_experts_that_cannot_be(expert: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(2, 4, 2, expert={"name": expert})


@pytest.mark.parametrize("wrong", [{"experts": 1}, {"expert": {"name": "mlq"}}, {"gates": 2}])
def test_wrong_configs_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        MMoE.Config.model_validate(wrong)
