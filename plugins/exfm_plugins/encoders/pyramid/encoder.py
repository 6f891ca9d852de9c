"""The pyramid as an exfm sequence encoder.

Legend: B examples, E events of all examples, N context tokens, K summary tokens, D width.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import ComponentConfig, SequenceEncoder
from exfm.components import EncoderInputs, JaggedSequence
from exfm.layers import ActivationName, AttentionPooling, CandidateMeeting, NormName, norm
from exfm_plugins.encoders.pyramid.levels import MergeName, PyramidLevel


class Pyramid(SequenceEncoder):
    """Reads a long history at several time scales in parallel, in fewer tokens from level to level.

    After the offline sequence model of Meta's GEM (engineering post of 2025-11-10), "several parallel interaction
    modules stacked as a pyramid", of which no specification is public. Ours combines two ideas that are: a level has
    queries for its most recent tokens only, over keys and values of all (arXiv 2510.26104), and tokens are merged in
    chunks, several chunk sizes in parallel within a level and once more between levels. See ``Level`` for the
    equations. There is no causal mask, because the whole history precedes the prediction.

    Where the context has tokens that share a table with the sequence, the candidate item, their sum ``t`` joins the
    history as its newest event, and every event ``e`` becomes ``e + W (e * t)``, which distinguishes events of
    the candidate from others (ours).

    The summary is the top level's ``recent`` newest tokens, newest first, zeros where there are fewer, followed by
    ``pooled`` learned queries' attention over all of them (PMA, arXiv 1810.00825).

    For an example of T tokens, a level that keeps ``L = min(queries, T)`` of them costs, in FLOPs::

        sum over strides s of (4 q + 4 c) D^2 + 4 q c D,  q = ceil(L / s), c = ceil(T / s)    attention
        4 ffn L D^2                                                                           feed-forward network
        2 c s D^2 per branch with s > 1, only with merge: linear                              merging

    and passes ``ceil(L / shrink)`` tokens to the next level, which is ``2 shrink ceil(L / shrink) D^2`` more with
    ``merge: linear``. The pooling of T tokens costs ``4 T D^2 + 4 pooled T D + 2 pooled D^2``. A candidate is a further
    token at the bottom, and ``2 D^2`` for every event.

    Args:
        config: see ``Config``.
        inputs: width of the tokens, and which context tokens are the candidate item's.

    Raises:
        ValueError: ``heads`` do not divide the width into even parts.

    Example::

        encoder = Pyramid(Pyramid.Config(), EncoderInputs("history", 16, 500, context=("user", "item"), targets=(1,)))
        sequence = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        summary_BKD = encoder(sequence, torch.randn(3, 2, 16))  # (3, 2, 16)
    """

    name: ClassVar[str] = "pyramid"

    class Config(ComponentConfig):
        """Fields of `pyramid`."""

        queries: tuple[PositiveInt, ...] = Field(
            (64, 16),
            min_length=1,
            description="Most recent tokens that each level keeps, the bottom level first; a level for each number.",
        )
        strides: tuple[PositiveInt, ...] = Field(
            (1, 4), min_length=1, description="Parallel branches of every level: tokens that each merges to a chunk."
        )
        shrink: PositiveInt = Field(
            2, description="Tokens that are merged before every level after the first; 1 for none."
        )
        merge: MergeName = Field(
            "mean", description="A chunk becomes the mean of its tokens, or a linear map of them side by side."
        )
        heads: PositiveInt = Field(2, description="Attention heads; they divide the width into even parts.")
        ffn: PositiveInt = Field(2, description="Hidden width of the feed-forward networks, as a multiple of D.")
        activation: ActivationName = Field("silu", description="In the feed-forward networks.")
        norm: NormName = Field("layer_norm", description="Before the branches, the networks and the summary.")
        recent: PositiveInt = Field(1, description="Summary tokens that are the newest tokens of the top level.")
        pooled: PositiveInt = Field(1, description="Summary tokens that are learned queries' attention over all.")

    def __init__(self, config: Config, inputs: EncoderInputs) -> None:
        super().__init__(config, inputs)
        self.recent = config.recent
        self.num_tokens = config.recent + config.pooled
        self.meeting = CandidateMeeting(inputs.targets, inputs.dim) if inputs.targets else None
        self.levels = nn.ModuleList(
            PyramidLevel(
                inputs.dim,
                queries,
                shrink=config.shrink if height else 1,
                strides=config.strides,
                heads=config.heads,
                ffn=config.ffn,
                merge=config.merge,
                activation=config.activation,
                norm_name=config.norm,
            )
            for height, queries in enumerate(config.queries)
        )
        self.top_norm = norm(config.norm, inputs.dim)
        self.pooling = AttentionPooling(inputs.dim, config.heads, config.pooled)

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets, and context tokens (B, N, D), to summary tokens (B, K, D)."""
        if self.meeting is not None:
            sequence = self.meeting(sequence, context_BND)
        for level in self.levels:
            sequence = level(sequence)
        top = sequence.with_values(self.top_norm(sequence.values_ED))
        return torch.cat([top.newest(self.recent), self.pooling(top)], dim=1)
