"""A small student and teacher for tests of transfer strategies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec
from tests.plugins.checks import Net


class Head(nn.Linear):
    """(B, R) -> logits (B,)."""

    def __init__(self, width: int, *, bias: bool = True) -> None:
        super().__init__(width, 1, bias=bias, dtype=torch.float64)

    def forward(self, representation_BR: Tensor) -> Tensor:
        return super().forward(representation_BR).squeeze(1)


class Student(nn.Module):
    """A trunk of one layer, and one serving head per task (float64)."""

    def __init__(self, tasks: Sequence[str] = ("click", "buy"), inputs: int = 3, width: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(inputs, width, dtype=torch.float64)
        self.heads = nn.ModuleList(Head(width) for _ in tasks)
        self.spec = StudentSpec(tuple(tasks), width, lambda: Head(width))

    def head(self, index: int) -> Head:
        head = self.heads[index]
        assert isinstance(head, Head)
        return head

    def forward(self, x_BI: Tensor) -> StudentOutput:
        representation_BR = self.trunk(x_BI).tanh()
        logits = [head(representation_BR) for head in self.heads]
        return StudentOutput(representation_BR, dict(zip(self.spec.tasks, logits, strict=True)))

    def label_loss(self, output: StudentOutput, labels: dict[str, Tensor]) -> Tensor:
        losses = [binary_cross_entropy_with_logits(output.logits[task], labels[task]) for task in self.spec.tasks]
        return torch.stack(losses).sum()


def distilled(strategy: nn.Module, task: str) -> nn.Linear:
    """The distillation head of a task."""
    heads: Net = strategy.heads
    head = heads[f"task_{task}"].head
    assert isinstance(head, nn.Linear)
    return head


def teacher(*tasks: str) -> TeacherSpec:
    return TeacherSpec("fm", tasks)


def batch(
    size: int, tasks: Sequence[str] = ("click", "buy"), seed: int = 0
) -> tuple[Tensor, TeacherOutput, dict[str, Tensor]]:
    """Inputs, a teacher's supervision with misses, and labels of as many examples."""
    generator = torch.Generator().manual_seed(seed)
    x_BI = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    soft = {task: torch.rand(size, generator=generator, dtype=torch.float64) for task in tasks}
    hit = {task: torch.rand(size, generator=generator) < 0.7 for task in soft}
    hard = {task: (torch.rand(size, generator=generator) < 0.3).double() for task in tasks}
    return x_BI, TeacherOutput(soft, hit), hard


def bce(logit: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of one example, from its definition."""
    p = 1 / (1 + (-logit).exp())
    return -(target * p.log() + (1 - target) * (1 - p).log())


def one_hot_stream(buckets: int = 4, size: int = 4000, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A convex toy: one-hot inputs (B, buckets), labels (B,), and a biased teacher's probabilities (B,)."""
    generator = torch.Generator().manual_seed(seed)
    bucket = torch.randint(buckets, (size,), generator=generator)
    truth = torch.linspace(0.1, 0.7, buckets, dtype=torch.float64)
    label = (torch.rand(size, generator=generator, dtype=torch.float64) < truth[bucket]).double()
    return nn.functional.one_hot(bucket, buckets).double(), label, (0.25 + 0.6 * truth)[bucket]


def minimise(loss: Callable[[], Tensor], parameters: list[nn.Parameter]) -> None:
    """Brings a convex loss to its minimum."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)
