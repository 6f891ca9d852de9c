"""Compresses vectors of a model, such as its representation, to the few numbers that it stores for its students.

Legend: B examples, R width of a vector, K width of its code, D width of a token, T tasks.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from exfm.layers import Standardizer, mlp

_HIDDEN = 64

RECONSTRUCTION = 0.1
"""Weight of a state's reconstruction beside its value at the next example (ours)."""


@dataclass(frozen=True)
class Examples:
    """Holds the columns of a batch that the losses of compressors read.

    Attributes:
        targets: (B,) by task, the average of label and the model's own probability.
        previous: (B,) by entity, the index of the entity's latest earlier example in the batch; -1 where it has none.
        tokens: (B, D) by entity, the model's token of the entity, without gradient.
        weights: (B,) by task, 0 where its label is not known; a task without an entry has all labels.
        rows: the divisor of sums over the rows, see ``Labels.rows``; by default their number.
    """

    targets: Mapping[str, Tensor]
    previous: Mapping[str, Tensor]
    tokens: Mapping[str, Tensor]
    weights: Mapping[str, Tensor] = field(default_factory=dict)
    rows: float | None = None

    def mean(self, loss_B: Tensor) -> Tensor:
        """Averages losses, (B,) or (B, R), over all examples."""
        if self.rows is None:
            return loss_B.mean()
        return loss_B.sum() / (self.rows * math.prod(loss_B.shape[1:]))


class Compressor(nn.Module):
    """Compresses a standardised vector ``x`` by an autoencoder, linear in both directions: ``s = E x + e`` is the code.

    The loss is ``|D s + d - x|^2 / R``, LoopFM's way to compress an FM's hidden states (arXiv 2605.29280), and the
    terms of a subclass. The vector is read without gradient: the model itself learns as if there were no compressor.

    Args:
        vector: the name of the vector.
        width: R.
        code: K.
        tasks: the model's tasks.

    Raises:
        ValueError: the code is wider than the vector.
    """

    weight = 1.0

    def __init__(self, vector: str, width: int, code: int, tasks: tuple[str, ...]) -> None:
        super().__init__()
        if code > width:
            raise ValueError(
                f"{code} numbers are no compression of the {width} of {vector!r}; lower supervision.state_dim or "
                "supervision.embedding_dim"
            )
        self.vector, self.width, self.tasks = vector, width, tasks
        self.standard = Standardizer(width)
        self.encoder = nn.Linear(width, code)
        self.decoder = nn.Linear(code, width)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Maps vectors (B, R) by name to codes (B, K) as they are stored."""
        code_BK: Tensor = self.encoder(self.standard(vectors[self.vector].detach()))
        # In float32 whatever autocast computes in, because codes are stored in a format of their own.
        return code_BK.detach().float()

    def sums(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Returns the sums of a batch, or of some of its rows, that its moments are made of."""
        vector_BR = vectors[self.vector].detach()
        return self.standard.sums(vector_BR, torch.ones_like(vector_BR[:, 0], dtype=torch.bool))

    def loss(self, vectors: Mapping[str, Tensor], examples: Examples, sums: Tensor | None = None) -> Tensor:
        """Returns the loss, a scalar, with this batch not yet in the moments that standardise it; then adds it.

        Args:
            sums: those of the whole batch; by default of these rows.
        """
        vector_BR = vectors[self.vector].detach()
        standard_BR = self.standard(vector_BR)
        code_BK = self.encoder(standard_BR)
        loss: Tensor = self.weight * examples.mean((self.decoder(code_BK) - standard_BR).square())
        explained_BT, counted_B = self.explain(code_BK, examples)
        for position, task in enumerate(self.tasks):
            if task in examples.targets:
                term_B = binary_cross_entropy_with_logits(
                    explained_BT[:, position], examples.targets[task], reduction="none"
                )
                # By where and not by a product, because a NaN times 0 is NaN.
                term_B = torch.where(counted_B, term_B, 0.0)
                loss = loss + examples.mean(term_B * examples.weights[task] if task in examples.weights else term_B)
        # After the loss, so that no example is standardised by itself.
        self.standard.add_sums(self.sums(vectors) if sums is None else sums)
        return loss

    @abstractmethod
    def explain(self, code_BK: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """Maps codes to logits (B, T) of the targets, and returns the mask (B,) of the examples that count."""


class EmbeddingCompressor(Compressor):
    """Compresses the vector of an example for students that learn from the same example.

    ``z = v . s + b`` explains the targets of the example, which keeps the direction in which the model predicts,
    however little it varies (ours).
    """

    def __init__(self, vector: str, width: int, code: int, tasks: tuple[str, ...]) -> None:
        super().__init__(vector, width, code, tasks)
        self.linear = nn.Linear(code, len(tasks))

    def explain(self, code_BK: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """Explains each example by its code."""
        return self.linear(code_BK), torch.ones_like(code_BK[:, 0], dtype=torch.bool)


class StateCompressor(Compressor):
    """Compresses the vector of an entity's example for a student at the entity's next example.

    With ``s`` the code of the entity's latest earlier example in the batch, and ``q_e`` an MLP of the model's token of
    each other entity ``e`` now::

        z = v . s + sum_e (w . (s * q_e) + u_e . q_e) + b

    explains the targets of the present example, as the states of entities explain them together (ours). A code that is
    only reconstructed keeps more of the item that was there than of the user.

    Args:
        entity: whose state it is.
        others: the other entities.
        dim: D.
    """

    weight = RECONSTRUCTION

    def __init__(
        self, entity: str, others: Iterable[str], dim: int, vector: str, width: int, code: int, tasks: tuple[str, ...]
    ) -> None:
        super().__init__(vector, width, code, tasks)
        self.entity, self.others = entity, tuple(others)
        self.networks = nn.ModuleList(mlp([dim, _HIDDEN, code], "silu") for _ in self.others)
        self.product_TK = nn.Parameter(torch.ones(len(tasks), code))
        self.linear = nn.Linear(code, len(tasks))
        self.other_linear = nn.ModuleList(nn.Linear(code, len(tasks), bias=False) for _ in self.others)

    def explain(self, code_BK: Tensor, examples: Examples) -> tuple[Tensor, Tensor]:
        """Predicts the targets of each example from the code of the entity's example before it."""
        previous_B = examples.previous[self.entity]
        # -1 reads row 0, because an index must be valid; the mask that is returned leaves these examples out.
        code_BK = code_BK.index_select(0, previous_B.clamp(min=0))
        explained_BT: Tensor = self.linear(code_BK)
        for other, network, linear in zip(self.others, self.networks, self.other_linear, strict=True):
            other_BK = network(examples.tokens[other])
            explained_BT = explained_BT + (code_BK * other_BK) @ self.product_TK.T + linear(other_BK)
        return explained_BT, previous_B >= 0


def previous_examples(ids_BK: Tensor) -> list[Tensor]:
    """Returns for each entity the index (B,) of its latest earlier example in the batch, -1 where it has none.

    Args:
        ids_BK: int64: time, example id, and a column of ids for each entity, -1 where the id is missing. The rows of
            several processes are concatenated, so that they are not in the order of time.
    """
    # Stable sorts, the last key first: together they sort by (id, time, example id).
    order_B = torch.argsort(ids_BK[:, 1], stable=True)
    order_B = order_B[torch.argsort(ids_BK[order_B, 0], stable=True)]
    result = []
    for id_B in ids_BK[:, 2:].unbind(1):
        sorted_B = order_B[torch.argsort(id_B[order_B], stable=True)]
        earlier_B, later_B = sorted_B[:-1], sorted_B[1:]
        same_B = (id_B[earlier_B] == id_B[later_B]) & (id_B[later_B] >= 0)
        previous_B = torch.full_like(id_B, -1)
        previous_B[later_B] = torch.where(same_B, earlier_B, -1)
        result.append(previous_B)
    return result
