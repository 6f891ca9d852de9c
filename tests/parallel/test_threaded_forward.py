"""A batch that threads share gives the predictions and gradients of the whole batch, whichever thread is ahead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from exfm.interfaces.jagged import JaggedSequence
from exfm.parallel import CpuTrunkRunner
from exfm.parallel.cast_weights import cast_weights
from exfm.parallel.threaded_forward import threaded_forward
from tests.modeling.cases import random_batch, table_weights
from tests.modeling.test_ranking_model import SCHEMA, build

EXAMPLES = 1_100
MODELS: dict[str, dict[str, Any]] = {
    "tokens": {"backbone": {"name": "wukong"}},
    "encoder": {"backbone": {"name": "dcn_v2"}, "sequence_encoder": {"name": "din"}},
    "per task": {"backbone": {"name": "ple"}},
    "sequences": {"backbone": {"name": "interformer"}},
    "recomputed": {"backbone": {"name": "wukong"}, "activation_checkpointing": True},
    "bf16": {"backbone": {"name": "dcn_v2"}, "precision": "bf16"},
    "bf16, recomputed": {"backbone": {"name": "dcn_v2"}, "precision": "bf16", "activation_checkpointing": True},
}


def learned(
    config: dict[str, Any], threads: int, examples: int = EXAMPLES
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Logits, and the dense gradients and tables after a step."""
    model = build(config)
    with CpuTrunkRunner(threads).training_step(examples) as run_trunk:
        logits = model(model.narrow(random_batch(SCHEMA, examples)), run_trunk).logits
        sum(logit.square().mean() for logit in logits.values()).backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {task: logit.detach() for task, logit in logits.items()}, gradients | table_weights(model)


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS)
def test_threads_predict_and_learn_what_the_whole_does(config: dict[str, Any]) -> None:
    rounding = 1e-2 if config.get("precision") == "bf16" else 1e-4
    for whole, shared in zip(learned(config, 1), learned(config, 2), strict=True):
        assert whole.keys() == shared.keys()
        for name, expected in whole.items():
            torch.testing.assert_close(shared[name], expected, rtol=rounding, atol=rounding * 0.1, msg=name)


@pytest.mark.parametrize("name", ["encoder", "bf16", "bf16, recomputed"])
def test_a_step_on_threads_repeats_to_the_bit(name: str) -> None:
    """Of 3,000 examples each thread has three micro-batches in float32, as many uses of each weight."""
    first, *others = (learned(MODELS[name], 2, examples=3_000)[1] for _ in range(6))
    for again in others:
        for weight, expected in first.items():
            assert torch.equal(again[weight], expected), weight


def test_what_a_slice_does_not_use_has_no_gradient_there() -> None:
    tokens_BN = torch.randn(6, 3, requires_grad=True)
    events_ED = torch.randn(4, 2, requires_grad=True)
    used, unused = (torch.ones((), requires_grad=True) for _ in range(2))
    histories = {"clicks": JaggedSequence(events_ED, torch.tensor([0, 1, 4, 4, 4, 4, 4]), 3)}

    def call(rows: list[Tensor], sequences: Mapping[str, JaggedSequence]) -> Tensor:
        clicks = sequences["clicks"]
        output_BN = rows[0] * used
        return output_BN if not clicks.values_ED.numel() else output_BN + clicks.values_ED.sum()

    result_BN = threaded_forward(call, [tokens_BN], histories, [used, unused], 2)  # type: ignore[arg-type]
    result_BN.sum().backward()
    assert torch.equal(tokens_BN.grad, torch.ones(6, 3))  # type: ignore[arg-type]
    assert torch.equal(events_ED.grad, torch.full((4, 2), 9.0))  # type: ignore[arg-type]
    assert used.grad is not None
    torch.testing.assert_close(used.grad, tokens_BN.detach().sum())
    assert unused.grad is None


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3, 3)])
def test_a_weight_is_cast_once_for_all_threads(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, requires_grad=True)
    casts: list[Any] = []

    def call(rows: list[Tensor], sequences: Mapping[str, JaggedSequence]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            product = torch.matmul(rows[0].detach(), weight)
        nodes = [product.grad_fn]
        while nodes and not nodes[0].name().startswith("ToCopy"):  # type: ignore[union-attr]
            nodes = [node for node, _ in nodes[0].next_functions if node is not None]  # type: ignore[union-attr]
        casts.append(nodes[0])
        return rows[0] * product.float().sum()

    with cast_weights([weight, torch.ones(())]):
        threaded_forward(call, [torch.randn(4, 3)], {}, [weight], 2)  # type: ignore[arg-type]
    assert len(casts) == 2
    assert casts[0] is casts[1]
    assert torch.autocast_increment_nesting() == 1
    torch.autocast_decrement_nesting()


def test_an_error_in_a_thread_is_the_callers() -> None:
    def call(rows: list[Tensor], sequences: Mapping[str, JaggedSequence]) -> Tensor:
        raise ValueError("no such luck")

    with pytest.raises(ValueError, match="no such luck"):
        threaded_forward(call, [torch.randn(4, 2)], {}, [], 2)  # type: ignore[arg-type]
