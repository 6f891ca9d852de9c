"""A causal transformer over the history as an exfm sequence encoder.

Legend: E events of all examples, D width.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, PositiveInt, model_validator
from torch import nn

from exfm import ComponentConfig
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import ActivationName, HistoryEncoder, JaggedAttention, NormName, SummaryName, mlp, norm


class Transformer(HistoryEncoder):
    """Causal self-attention over the history, its newest events or a pooling of it as the summary.

    Blocks are those of arXiv 1706.03762 with norms first (2002.04745) and rotary positions (2104.09864)::

        X = X_r + Attention(Norm(X_r), Norm(X))     X_r: the most recent events that the layer keeps, all by default
        X = X + MLP(Norm(X))

    An event attends to itself and to older events. Positions count back from the newest event. With ``queries`` a layer
    keeps its most recent events alone, over keys and values of all its inputs (query truncation, arXiv 2510.26104).
    Computed on the jagged events, so the cost depends on the number of events and not on the longest history.

    Where the context has tokens that share a table with the sequence, the candidate item, their sum joins the history
    as its newest event (ours; GEM's layout is not public): it sees all events, and none of them sees it.

    Args:
        config: see ``Config``.
        inputs: width of the tokens, and which context tokens are the candidate item's.

    Raises:
        ValueError: ``heads`` do not divide the width into even parts.

    Example::

        inputs = EncoderInputs("history", 16, 500, context=("user", "item"), targets=(1,))
        encoder = Transformer(Transformer.Config(), inputs)
        sequence = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        summary_BKD = encoder(sequence, torch.randn(3, 2, 16))  # (3, 1, 16)
    """

    name: ClassVar[str] = "transformer"

    class Config(ComponentConfig):
        """Fields of `transformer`."""

        layers: PositiveInt = Field(2, description="Blocks of self-attention and feed-forward network.")
        heads: PositiveInt = Field(2, description="Attention heads; they divide the width into even parts.")
        queries: tuple[PositiveInt, ...] = Field(
            (), description="Most recent events that each layer keeps, a number for each layer; none: all events."
        )
        summary: SummaryName = Field(
            "last",
            description="last: the newest events; mean: the mean of the events the last layer keeps; target: attention "
            "over these with the candidate item as query, or a learned query where there is no candidate.",
        )
        recent: PositiveInt = Field(1, description="Summary tokens of `summary: last`, newest first, zeros if missing.")
        append_target: bool = Field(
            True, description="Whether the candidate item is the newest event, where the context has its tokens."
        )
        ffn: PositiveInt = Field(4, description="Hidden width of the feed-forward networks, as a multiple of D.")
        activation: ActivationName = Field("gelu", description="In the feed-forward networks.")
        norm: NormName = Field("layer_norm", description="Before attention, feed-forward network and summary.")

        @model_validator(mode="after")
        def _one_number_for_each_layer(self) -> Transformer.Config:
            if self.queries and len(self.queries) != self.layers:
                raise ValueError(
                    f"queries: {len(self.queries)} numbers for {self.layers} layers; give one for each layer, or none"
                )
            return self

    def __init__(self, config: Config, inputs: EncoderInputs) -> None:
        kept: list[int | None] = list(config.queries or [None] * config.layers)
        if config.summary == "last":
            # Nothing reads other events of the last layer.
            kept[-1] = min(kept[-1] or config.recent, config.recent)
        super().__init__(
            config,
            inputs,
            [TransformerBlock(inputs.dim, config, queries) for queries in kept],
            summary=config.summary,
            recent=config.recent,
            heads=config.heads,
            norm_name=config.norm,
            append_target=config.append_target,
        )


class TransformerBlock(nn.Module):
    """Causal attention, then a feed-forward network, each after a norm and added to its input.

    Args:
        dim: D.
        config: heads, width and names.
        queries: the most recent events of an example that are kept; None for all.
    """

    def __init__(self, dim: int, config: Transformer.Config, queries: int | None) -> None:
        super().__init__()
        self.queries = queries
        self.attention_norm = norm(config.norm, dim)
        self.attention = JaggedAttention(dim, config.heads, causal=True)
        self.ffn_norm = norm(config.norm, dim)
        self.ffn = mlp([dim, config.ffn * dim, dim], config.activation)

    def forward(self, sequence: JaggedSequence) -> JaggedSequence:
        """Maps events (E, D) to the events that are kept."""
        mixed = self.attention(sequence.with_values(self.attention_norm(sequence.values_ED)), self.queries)
        kept = sequence if self.queries is None else sequence.recent(self.queries)
        values_ED = kept.values_ED + mixed.values_ED
        return kept.with_values(values_ED + self.ffn(self.ffn_norm(values_ED)))
