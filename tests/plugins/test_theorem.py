"""ExFM's two theorems (arXiv 2502.17494) on toy streams: where the heads end, and who follows a drift."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput
from exfm_plugins.transfer.auxiliary_head.strategy import AuxiliaryHead
from exfm_plugins.transfer.direct.strategy import Direct
from exfm_plugins.transfer.student_adapter.strategy import StudentAdapter
from tests.plugins.checks import Net
from tests.plugins.students import Head, Student, batch, distilled, minimise, one_hot_stream, teacher

X, LABEL, SOFT = one_hot_stream()
EVERYWHERE = torch.ones(len(X), dtype=torch.bool)
TAUGHT = TeacherOutput({"click": SOFT}, {"click": EVERYWHERE})
WEIGHT = 2.0


def by_bucket(values: Tensor) -> Tensor:
    """Mean of each bucket of the stream: what a head on one-hot inputs ends at that learns ``values``."""
    return (X.T @ values) / X.sum(0)


def converged(strategy: Net) -> Tensor:
    """The serving head's probabilities by bucket, where label loss and transfer together are least."""
    serving = Head(4, bias=False)

    def loss() -> Tensor:
        logit = serving(X)
        return binary_cross_entropy_with_logits(logit, LABEL) + strategy.loss(
            StudentOutput(X, {"click": logit}), TAUGHT, {"click": LABEL}
        )

    minimise(loss, [*serving.parameters(), *(p for n, p in strategy.named_parameters() if "adapter" not in n)])
    return serving.weight[0].detach().sigmoid()


def shape() -> StudentSpec:
    return StudentSpec(("click",), 4, lambda: Head(4, bias=False))


def test_with_one_head_the_bias_of_the_teacher_moves_in() -> None:
    """It ends at (label rate + w * teacher) / (1 + w), as far from the labels as w says."""
    found = converged(Direct(Direct.Config(teacher="fm", weight=WEIGHT), shape(), teacher("click")))
    mixture = (by_bucket(LABEL) + WEIGHT * by_bucket(SOFT)) / (1 + WEIGHT)
    torch.testing.assert_close(found, mixture, rtol=0, atol=1e-6)
    assert (found - by_bucket(LABEL)).abs().max() > 0.05


def test_with_two_heads_the_serving_head_ends_at_the_labels() -> None:
    fields = {"weight": WEIGHT, "gradient_scale": 3.0, "label_scale": 1.5}
    strategy = AuxiliaryHead(AuxiliaryHead.Config(teacher="fm", **fields), shape(), teacher("click"))
    torch.testing.assert_close(converged(strategy), by_bucket(LABEL), rtol=0, atol=1e-6)
    (distillation,) = strategy.parameters()
    torch.testing.assert_close(
        distillation[0].detach().sigmoid(), by_bucket((1.5 * SOFT).clamp(max=1)), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("head", ["own", "shared"])
def test_with_an_adapter_the_distillation_head_ends_at_the_corrected_teacher(head: str) -> None:
    config = StudentAdapter.Config(teacher="fm", head=head, weight=WEIGHT, hidden=())
    strategy = StudentAdapter(config, shape(), teacher("click")).double()
    adapter = strategy.adapters["task_click"]
    minimise(lambda: strategy.adapter_loss(TAUGHT, {"click": LABEL}), list(adapter.parameters()))
    corrected = adapter(SOFT).sigmoid().detach()
    # without hidden layers it is a logistic regression on the teacher's logit: calibrated where its loss is least
    assert corrected.mean().item() == pytest.approx(LABEL.mean().item(), abs=1e-6)
    assert (SOFT.mean() - LABEL.mean()).abs() > 0.03
    torch.testing.assert_close(converged(strategy), by_bucket(LABEL), rtol=0, atol=1e-6)
    expected = by_bucket(corrected)
    if head == "shared":
        expected = (by_bucket(SOFT) + WEIGHT * expected) / (1 + WEIGHT)
    learned = distilled(strategy, "click").weight[0].detach().sigmoid()
    torch.testing.assert_close(learned, expected, rtol=0, atol=1e-6)


STEPS, DELAY = 400, 150


@pytest.mark.parametrize("move", ["ramp", "jump"])
@pytest.mark.parametrize("read", ["logit", "probability"])
def test_the_corrected_label_follows_a_drift_faster_than_the_teacher(move: str, read: str) -> None:
    """The teacher is right about the world as it was DELAY batches ago; the error is excess log loss."""

    def level(step: int) -> float:
        return 0.8 * max(step, 0) / STEPS if move == "ramp" else 0.8 * (step >= DELAY)

    torch.manual_seed(0)
    config = StudentAdapter.Config(teacher="fm", input=read, lr=3e-3)
    strategy = StudentAdapter(config, Student(("click",)).spec, teacher("click")).double()
    optimizer, hit = strategy.adapter_optimizer(), {"click": torch.ones(256, dtype=torch.bool)}
    errors = torch.zeros(2, dtype=torch.float64)
    for step in range(STEPS):
        noise_B = batch(256, ("click",), seed=step)[0][:, 0]
        truth_B = (0.7 * noise_B + level(step)).sigmoid()
        teacher_B = (0.7 * noise_B + level(step - DELAY)).sigmoid()
        corrected_B = strategy.adapters["task_click"](teacher_B).sigmoid().detach()
        errors += torch.stack([excess(truth_B, teacher_B), excess(truth_B, corrected_B)]) * (step >= DELAY)
        label_B = (torch.rand(256, dtype=torch.float64) < truth_B).double()
        optimizer.zero_grad()
        strategy.adapter_loss(TeacherOutput({"click": teacher_B}, hit), {"click": label_B}).backward()
        optimizer.step()
    assert errors[1] < 0.3 * errors[0]


def excess(truth_B: Tensor, found_B: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of what was found from the truth."""
    both = nn.functional.binary_cross_entropy
    return both(found_B, truth_B) - both(truth_B, truth_B)
