"""Pooling by multi-head attention as an exfm sequence encoder.

Legend: B examples, E events of all examples, N context tokens, K queries, D width.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from exfm import ComponentConfig, SequenceEncoder
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import ActivationName, AttentionPooling, NormName, mlp, norm, sum_tokens


class PMA(SequenceEncoder):
    """K learned queries attend over an example's events: pooling by multi-head attention (PMA, arXiv 1810.00825).

    With ``E`` the events and ``Q`` the queries::

        H = Norm(Q + MultiHead(Q, E, E))
        summary = Norm(H + MLP(H))          without a feed-forward network, H

    As in the paper, except that events do not pass a feed-forward network first. The order of events has no effect.
    Each summary token has a query, which is the same for all examples. Where the context has the candidate item, the
    queries are shifted by ``W t``, ``t`` being the sum of its tokens (ours), so that the summary depends on the
    candidate. For an example without events, ``MultiHead`` is the bias of its output.

    For an example of T events the cost is ``4 T D^2 + 4 K T D + 2 K D^2`` FLOPs, and ``4 ffn K D^2`` for the
    feed-forward network.

    Args:
        config: see ``Config``.
        inputs: width of the tokens, and which context tokens are the candidate item's.

    Raises:
        ValueError: ``heads`` do not divide the width.

    Example::

        encoder = PMA(PMA.Config(), EncoderInputs("history", 16, 50, context=("user", "item"), targets=(1,)))
        sequence = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=50)
        summary_BKD = encoder(sequence, torch.randn(3, 2, 16))  # (3, 2, 16)
    """

    name: ClassVar[str] = "pma"

    class Config(ComponentConfig):
        """Fields of `pma`."""

        queries: PositiveInt = Field(2, description="Learned queries, each of which gives a summary token.")
        heads: PositiveInt = Field(2, description="Attention heads; they divide the width.")
        target_aware: bool = Field(
            True,
            description="Whether the candidate item's tokens shift the queries, where the context has such tokens.",
        )
        ffn: NonNegativeInt = Field(
            2, description="Hidden width of the feed-forward network, as a multiple of D; 0 for no network."
        )
        activation: ActivationName = Field("relu", description="In the feed-forward network; the paper has relu.")
        norm: NormName = Field("layer_norm", description="After the attention and after the feed-forward network.")

    def __init__(self, config: Config, inputs: EncoderInputs) -> None:
        super().__init__(config, inputs)
        dim = inputs.dim
        self.num_tokens = config.queries
        self.pooling = AttentionPooling(dim, config.heads, config.queries)
        self.shift = nn.Linear(dim, dim, bias=False) if config.target_aware and inputs.targets else None
        self.norm = norm(config.norm, dim)
        self.ffn = mlp([dim, config.ffn * dim, dim], config.activation) if config.ffn else None
        self.ffn_norm = norm(config.norm, dim) if config.ffn else None

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets, and context tokens (B, N, D), to summary tokens (B, K, D)."""
        # The residual adds the queries, so they are shifted here as the pooling shifts them.
        query_BKD, shift_BD = self.pooling.query_KD.expand(sequence.batch_size, -1, -1), None
        if self.shift is not None:
            shift_BD = self.shift(sum_tokens(context_BND, self.inputs.targets))
            query_BKD = query_BKD + shift_BD.unsqueeze(1)
        summary_BKD: Tensor = self.norm(query_BKD + self.pooling(sequence, shift_BD))
        if self.ffn is not None and self.ffn_norm is not None:
            summary_BKD = self.ffn_norm(summary_BKD + self.ffn(summary_BKD))
        return summary_BKD
