"""`representation`: the student's projected representation is drawn to the teacher's embedding."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import exfm_plugins.transfer
from exfm.testing import DistillationStrategyTests
from exfm.transfer import StudentOutput, StudentSpec, TeacherOutput, TeacherSpec
from exfm_plugins.transfer.representation.strategy import Representation


class TestRepresentation(DistillationStrategyTests):
    component = Representation
    plugin = exfm_plugins.transfer
    configs = (
        {},
        {"loss": "mse", "hidden": [3], "gradient_scale": 2.0},
        {"loss": "contrastive", "temperature": 0.5, "weight": 0.5},
    )


def build(width: int, embedding: int, **fields: object) -> Representation:
    torch.manual_seed(0)
    student = StudentSpec(("click", "buy"), width, lambda: torch.nn.Linear(width, 1))
    strategy = Representation(
        Representation.Config(teacher="fm", **fields), student, TeacherSpec("fm", ("click", "buy"), embedding)
    )
    return strategy.double()


def batch(size: int, embedding: int, generator: torch.Generator) -> TeacherOutput:
    """Embeddings far from standard, and hits of which some examples have none."""
    scale_E = 10 ** torch.linspace(-2, 2, embedding, dtype=torch.float64)
    embedding_BE = scale_E * (5 + torch.randn(size, embedding, generator=generator, dtype=torch.float64))
    soft = {task: torch.rand(size, generator=generator, dtype=torch.float64) for task in ("click", "buy")}
    hit = {task: torch.rand(size, generator=generator) < 0.5 for task in soft}
    return TeacherOutput(soft, hit, embedding_BE)


def embedding_of(supervision: TeacherOutput) -> Tensor:
    assert supervision.embedding is not None
    return supervision.embedding


def rows_hit(supervision: TeacherOutput) -> list[int]:
    return [row for row in range(len(embedding_of(supervision))) if any(hit[row] for hit in supervision.hit.values())]


def standardised(earlier: list[TeacherOutput], row_E: Tensor) -> list[float]:
    """An embedding by the weighted mean and variance of all earlier hits, from their definition."""
    weights, rows = [], []
    later = 0
    for one in reversed(earlier):
        weights += [math.exp(-later / 100_000)] * len(rows_hit(one))
        rows += [embedding_of(one)[row].tolist() for row in rows_hit(one)]
        later += len(rows_hit(one))
    means = [sum(w * row[e] for w, row in zip(weights, rows, strict=True)) / sum(weights) for e in range(len(row_E))]
    variances = [
        sum(w * (row[e] - means[e]) ** 2 for w, row in zip(weights, rows, strict=True)) / sum(weights)
        for e in range(len(row_E))
    ]
    least = 1e-4 * sum(variances) / len(variances)
    standard = [
        (value - mean) / math.sqrt(max(variance, least, 1e-38))
        for value, mean, variance in zip(row_E.tolist(), means, variances, strict=True)
    ]
    return [min(max(value, -10.0), 10.0) for value in standard]


def cosine(one: list[float], other: list[float]) -> float:
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def distance(loss: str, temperature: float, z: list[list[float]], t: list[list[float]], i: int) -> float:
    if loss == "cosine":
        return 1 - cosine(z[i], t[i])
    if loss == "mse":
        return sum((a - b) ** 2 for a, b in zip(z[i], t[i], strict=True)) / len(z[i])
    right = math.exp(cosine(z[i], t[i]) / temperature)
    of_student = sum(math.exp(cosine(z[i], other) / temperature) for other in t)
    of_teacher = sum(math.exp(cosine(other, t[i]) / temperature) for other in z)
    return -(math.log(right / of_student) + math.log(right / of_teacher)) / 2


@given(
    loss=st.sampled_from(["cosine", "mse", "contrastive"]),
    sizes=st.lists(st.integers(1, 7), min_size=2, max_size=3),
    width=st.integers(1, 4),
    embedding=st.integers(2, 5),
    hidden=st.sampled_from([[], [3]]),
    seed=st.integers(0, 1000),
)
def test_is_the_documented_loss(
    loss: str, sizes: list[int], width: int, embedding: int, hidden: list[int], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    temperature = {"temperature": 0.3} if loss == "contrastive" else {}
    strategy = build(width, embedding, loss=loss, hidden=hidden, weight=2.5, **temperature)
    earlier: list[TeacherOutput] = []
    for size in sizes:
        supervision = batch(size, embedding, generator)
        representation_BR = torch.randn(size, width, generator=generator, dtype=torch.float64)
        actual = strategy.loss(StudentOutput(representation_BR, {}), supervision, {}).item()
        expected = 0.0
        if any(rows_hit(one) for one in earlier):
            hits = rows_hit(supervision)
            z = [project(strategy, representation_BR[row]) for row in hits]
            t = [standardised(earlier, embedding_of(supervision)[row]) for row in hits]
            expected = 2.5 * sum(distance(loss, 0.3, z, t, i) for i in range(len(hits))) / size
        assert actual == pytest.approx(expected, rel=1e-9, abs=1e-9)
        earlier.append(supervision)


def project(strategy: Representation, row_R: Tensor) -> list[float]:
    layers = [layer for layer in strategy.projection if isinstance(layer, torch.nn.Linear)]
    row = row_R.tolist()
    for number, layer in enumerate(layers):
        weight, bias = layer.weight.tolist(), layer.bias.tolist()
        row = [sum(w * x for w, x in zip(line, row, strict=True)) + b for line, b in zip(weight, bias, strict=True)]
        if number < len(layers) - 1:
            row = [x / (1 + math.exp(-x)) for x in row]
    return row


@pytest.mark.parametrize("loss", ["cosine", "mse", "contrastive"])
def test_scale_and_offset_of_the_embeddings_do_not_matter(loss: str) -> None:
    losses = []
    for scale, offset in ((1.0, 0.0), (1e-3, 2.0), (1e4, -1e3)):
        strategy, generator = build(3, 4, loss=loss), torch.Generator().manual_seed(0)
        for _ in range(2):
            given_ = batch(6, 4, generator)
            moved = TeacherOutput(given_.probabilities, given_.hit, scale * embedding_of(given_) + offset)
            x = torch.randn(6, 3, generator=generator, dtype=torch.float64)
            value = strategy.loss(StudentOutput(x, {}), moved, {}).item()
        losses.append(value)
    assert losses[0] > 0
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)


def test_embeddings_that_never_vary_do_not_explode() -> None:
    strategy, hit = build(3, 4, loss="mse"), {"click": torch.ones(5, dtype=torch.bool)}
    constant, other = torch.full((5, 4), 0.1, dtype=torch.float64), torch.full((5, 4), 7.0, dtype=torch.float64)
    x = torch.randn(5, 3, dtype=torch.float64)
    for embedding_BE in (constant, constant, other):
        loss = strategy.loss(StudentOutput(x, {}), TeacherOutput({}, hit, embedding_BE), {})
    assert loss.isfinite() and 50 < loss.item() < 200


@pytest.mark.parametrize("scale", [0.0, 0.5, 20.0])
def test_gradient_scale_multiplies_the_trunks_gradient_alone(scale: float) -> None:
    found = []
    for fields in ({}, {"gradient_scale": scale}):
        strategy, generator = build(3, 4, **fields), torch.Generator().manual_seed(0)
        first, second = batch(6, 4, generator), batch(6, 4, generator)
        x = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
        strategy.loss(StudentOutput(x, {}), first, {})
        loss = strategy.loss(StudentOutput(x, {}), second, {})
        first_layer = strategy.projection[0]
        assert isinstance(first_layer, nn.Linear)
        found.append((loss, *torch.autograd.grad(loss, [x, first_layer.weight])))
    (loss, trunk, projection), (other_loss, other_trunk, other_projection) = found
    assert trunk.any() and torch.equal(other_trunk, scale * trunk)
    assert torch.equal(other_loss, loss) and torch.equal(other_projection, projection)


def test_one_hit_alone_has_nothing_to_contrast_with() -> None:
    strategy, generator = build(3, 4, loss="contrastive"), torch.Generator().manual_seed(0)
    strategy.loss(StudentOutput(torch.ones(6, 3).double(), {}), batch(6, 4, generator), {})
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    alone = TeacherOutput({}, {"click": torch.arange(6) == 2}, batch(6, 4, generator).embedding)
    loss = strategy.loss(StudentOutput(x, {}), alone, {})
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == 0 and not gradient.any()


@pytest.mark.parametrize("loss", ["cosine", "mse", "contrastive"])
def test_a_student_learns_what_the_embedding_knows(loss: str) -> None:
    """An embedding that is a linear function of the inputs brings the trunk to represent them."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    embedding_BE = 30 * inputs @ torch.randn(3, 5, generator=generator, dtype=torch.float64) + 100
    supervision = TeacherOutput({}, {"click": torch.ones(64, dtype=torch.bool)}, embedding_BE)
    strategy, trunk = build(3, 5, loss=loss), torch.nn.Linear(3, 3).double()
    optimizer = torch.optim.Adam([*trunk.parameters(), *strategy.parameters()], lr=0.05)
    history = []
    for _ in range(150):
        value = strategy.loss(StudentOutput(trunk(inputs), {}), supervision, {})
        history.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert history[0] == 0
    assert history[-1] < 0.3 * history[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temperature": 0.2}, "temperature: 0.2 needs loss: contrastive, not cosine"),
        ({"fallback": ["other"]}, "embeddings of fm, other lie in different spaces"),
        ({"loss": "l1"}, "'cosine', 'mse' or 'contrastive'"),
        ({"hidden": [0]}, "hidden"),
        ({"weight": -1}, "weight"),
        ({"gradient_scale": float("inf")}, "gradient_scale"),
    ],
)
def test_wrong_configs_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Representation.Config(teacher="fm", **wrong)


def test_a_teacher_without_embeddings_is_refused_with_what_to_set() -> None:
    student = StudentSpec(("click",), 3, lambda: torch.nn.Linear(3, 1))
    with pytest.raises(ValueError, match=r"'fm' stores no embeddings; set models\.fm\.supervision\.embedding"):
        Representation(Representation.Config(teacher="fm"), student, TeacherSpec("fm", ("click",)))
