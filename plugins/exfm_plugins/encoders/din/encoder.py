"""DIN's target attention as an exfm sequence encoder.

Legend: B examples, E events of all examples, N context tokens, D width of a token, H width of a hidden layer,
T target tokens.
"""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from exfm import ComponentConfig, SequenceEncoder
from exfm.components import EncoderInputs, JaggedSequence, suggestion
from exfm.layers import sum_tokens


class DIN(SequenceEncoder):
    """Weighs each event by an MLP of it and the candidate item, and sums the events (arXiv 1706.06978).

    ``a_e = MLP([e || t || e - t || e * t])`` for event ``e`` and its example's target ``t``; the summary token is
    ``sum_e a_e e``, zeros for an example without history. As published, the weights are not normalised: their sum
    tells how much of the history concerns the candidate. Computed on the jagged events alone, so the cost is
    proportional to the number of events.

    The target is the sum of the target tokens, as an event is the sum of its fields' embeddings. Without a context
    token that shares a table with the sequence, it is a learned query. The paper's activation Dice normalises over
    the batch, so that an output would depend on other examples; it is not offered.

    Args:
        config: see ``Config``.
        inputs: width of the tokens, names of the context and which of it are the candidate item's.

    Raises:
        ValueError: ``target`` names a token that the context does not have.

    Example::

        encoder = DIN(DIN.Config(), EncoderInputs("history", 16, 50, context=("user", "item"), targets=(1,)))
        sequence = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=50)
        summary_B1D = encoder(sequence, torch.randn(3, 2, 16))  # (3, 1, 16)
    """

    name: ClassVar[str] = "din"

    class Config(ComponentConfig):
        """Fields of `din`."""

        hidden: tuple[PositiveInt, ...] = Field(
            (32,),
            min_length=1,
            description="Hidden widths of the MLP that weighs an event; the paper has a layer of 36.",
        )
        activation: Literal["relu", "prelu", "silu"] = Field(
            "relu", description="Follows every hidden layer; the paper has prelu and dice."
        )
        normalise: Literal["none", "softmax"] = Field(
            "none", description="none: weights as they are (the paper's); softmax: over the events of an example."
        )
        position_buckets: NonNegativeInt = Field(
            8,
            description="Buckets of log2(1 + number of newer events), each with a learned bias in the first hidden "
            "layer (ours); 0 for none.",
        )
        target: tuple[str, ...] = Field(
            (),
            description="Context tokens whose sum is the target; none: those that share a table with the sequence.",
        )

    boundaries: Tensor

    def __init__(self, config: Config, inputs: EncoderInputs) -> None:
        super().__init__(config, inputs)
        self._softmax = config.normalise == "softmax"
        self.targets = _target_indices(config.target, inputs)
        self.query_D = None if self.targets else nn.Parameter(torch.randn(inputs.dim) * inputs.dim**-0.5)
        self.first = nn.Linear(4 * inputs.dim, config.hidden[0])
        layers: list[nn.Module] = [_activation(config.activation, config.hidden[0])]
        for fan_in, fan_out in pairwise(config.hidden):
            layers += [nn.Linear(fan_in, fan_out), _activation(config.activation, fan_out)]
        self.later_layers = nn.Sequential(*layers, nn.Linear(config.hidden[-1], 1))
        buckets = config.position_buckets
        self.position_bias = nn.Embedding(buckets, config.hidden[0]) if buckets else None
        if self.position_bias is not None:
            # Zeros, so that training begins with the published weights.
            nn.init.zeros_(self.position_bias.weight)
        self.register_buffer("boundaries", 2 ** torch.arange(1, max(buckets, 1)), persistent=False)

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets, and context tokens (B, N, D), to a summary token (B, 1, D)."""
        example_E = sequence.example_index()
        hidden_EH = self._first_layer(sequence, self._target(context_BND), example_E)
        # Back to float32 under autocast, because sums over a long history would lose small terms in bfloat16.
        score_E1 = self.later_layers(hidden_EH).to(sequence.values_ED.dtype)
        if self._softmax:
            return _softmax_sum(sequence.values_ED, score_E1, example_E, sequence.batch_size).unsqueeze(1)
        return _segment_sum(score_E1 * sequence.values_ED, example_E, sequence.batch_size).unsqueeze(1)

    def _target(self, context_BND: Tensor) -> Tensor:
        if self.query_D is not None:
            return self.query_D.expand(context_BND.shape[0], -1)
        return sum_tokens(context_BND, self.targets)

    def _first_layer(self, sequence: JaggedSequence, target_BD: Tensor, example_E: Tensor) -> Tensor:
        """Computes ``W [e || t || e - t || e * t] + b``, terms of the target alone once per example."""
        # W (e - t) is W e - W t, so the columns of the difference are added to those of e and t.
        event_HD, target_HD, difference_HD, product_HD = self.first.weight.chunk(4, dim=1)
        values_ED = sequence.values_ED
        product_ED = values_ED * target_BD.index_select(0, example_E)
        per_example_BH = nn.functional.linear(target_BD, target_HD - difference_HD, self.first.bias)
        per_event_EH = nn.functional.linear(
            torch.cat([values_ED, product_ED], dim=1), torch.cat([event_HD + difference_HD, product_HD], dim=1)
        )
        hidden_EH = per_event_EH + per_example_BH.index_select(0, example_E)
        if self.position_bias is not None:
            hidden_EH = hidden_EH + self.position_bias(
                torch.bucketize(sequence.positions() + 1, self.boundaries, right=True)
            )
        return hidden_EH


def _target_indices(names: tuple[str, ...], inputs: EncoderInputs) -> tuple[int, ...]:
    """Returns the indices of the target tokens in the context; by default those that share the sequence's table."""
    for name in names:
        if name not in inputs.context:
            raise ValueError(
                f"din: target {name!r} is not among the tokens that {inputs.sequence!r} is encoded with."
                f"{suggestion(name, inputs.context) or ' There are none.'}"
            )
    return tuple(inputs.context.index(name) for name in names) or inputs.targets


def _activation(name: str, width: int) -> nn.Module:
    if name == "prelu":
        return nn.PReLU(width)  # a slope per unit, as published
    return {"silu": nn.SiLU, "relu": nn.ReLU}[name]()


def _segment_sum(values_ED: Tensor, example_E: Tensor, batch_size: int) -> Tensor:
    return values_ED.new_zeros(batch_size, values_ED.shape[1]).index_add(0, example_E, values_ED)


def _softmax_sum(values_ED: Tensor, score_E1: Tensor, example_E: Tensor, batch_size: int) -> Tensor:
    """Sums events weighted by the softmax of their scores over each example, (B, D); zeros without events."""
    score_E = score_E1.squeeze(1)
    lowest_B = score_E.new_full((batch_size,), -torch.inf)
    # Subtracting the maximum keeps exp finite; it cancels out, so it needs no gradient.
    top_B = lowest_B.scatter_reduce(0, example_E, score_E.detach(), "amax")
    power_E1 = (score_E - top_B.index_select(0, example_E)).exp().unsqueeze(1)
    # An example's top score alone adds 1 to its total, so the clamp changes only examples without events. Its bound is
    # not 1, because a single event's total is exactly 1, where torch 2.14 gives clamp no gradient.
    total_B1 = _segment_sum(power_E1, example_E, batch_size).clamp(min=0.5)
    return _segment_sum(power_E1 * values_ED, example_E, batch_size) / total_B1
