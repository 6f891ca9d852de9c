"""The levels of a pyramid.

Legend: B examples, E tokens of all examples, C chunks of all examples, S tokens of a chunk, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import ActivationName, JaggedAttention, NormName, mlp, norm

MergeName = Literal["mean", "linear"]


def chunk_offsets(sequence: JaggedSequence, stride: int) -> Tensor:
    """Offsets of the examples' chunks, (B + 1,).

    Chunks are cut from the newest token on, so that older tokens never move a cut::

        tokens, stride 2    a b c d e
        chunk               0 1 1 2 2

    """
    counts_B = (sequence.lengths + stride - 1) // stride
    return torch.cat([sequence.offsets[:1], counts_B.cumsum(0)])


def chunk_index(sequence: JaggedSequence, stride: int) -> Tensor:
    """The chunk each token is in, (E,)."""
    newest_E = chunk_offsets(sequence, stride)[1:][sequence.example_index()] - 1
    return newest_E - sequence.positions() // stride


class Merge(nn.Module):
    """Each chunk of tokens becomes one: their mean, or a linear map of them side by side.

    In the oldest chunk of an example tokens may be missing: the mean is over those there are, the map reads zeros.

    Args:
        dim: D.
        stride: S.
        how: mean or linear.
    """

    def __init__(self, dim: int, stride: int, how: MergeName) -> None:
        super().__init__()
        self.stride = stride
        self.linear = nn.Linear(stride * dim, dim, bias=False) if how == "linear" else None

    def forward(self, sequence: JaggedSequence) -> JaggedSequence:
        """Maps tokens (E, D) to chunks (C, D)."""
        values_ED, positions_E = sequence.values_ED, sequence.positions()
        lengths_E = sequence.lengths[sequence.example_index()]
        newest_C = (positions_E % self.stride == 0).nonzero().squeeze(1)
        back_S = torch.arange(self.stride, device=newest_C.device)
        there_CS = positions_E[newest_C].unsqueeze(1) + back_S < lengths_E[newest_C].unsqueeze(1)
        rows_CS = torch.where(there_CS, newest_C.unsqueeze(1) - back_S, 0)
        chunks_CSD = values_ED.index_select(0, rows_CS.flatten()).view(*rows_CS.shape, values_ED.shape[1])
        chunks_CSD = chunks_CSD.masked_fill(~there_CS.unsqueeze(2), 0)
        if self.linear is None:
            merged_CD = chunks_CSD.sum(1) / there_CS.sum(1, keepdim=True)
        else:
            # Under autocast the map is in low precision; the tokens that levels add to are not.
            merged_CD = self.linear(chunks_CSD.flatten(1)).to(values_ED.dtype)
        longest = -(-sequence.max_length // self.stride)
        return JaggedSequence(merged_CD, chunk_offsets(sequence, self.stride), longest)


class Branch(nn.Module):
    """Attention at one time scale: among chunks of tokens, whose result each of a chunk's tokens gets.

    Args:
        dim: D.
        heads: of the attention.
        stride: S; 1 for tokens themselves.
        queries: the most recent tokens that get a result.
        merge: how a chunk becomes one.
    """

    def __init__(self, dim: int, heads: int, stride: int, queries: int, merge: MergeName) -> None:
        super().__init__()
        self.stride, self.queries = stride, queries
        self.merge = Merge(dim, stride, merge) if stride > 1 else nn.Identity()
        self.attention = JaggedAttention(dim, heads, causal=False)

    def forward(self, sequence: JaggedSequence) -> Tensor:
        """Maps tokens (E, D) to an update of the most recent ones."""
        mixed: JaggedSequence = self.attention(self.merge(sequence), -(-self.queries // self.stride))
        if self.stride == 1:
            return mixed.values_ED
        return mixed.values_ED.index_select(0, chunk_index(sequence.recent(self.queries), self.stride))


class Level(nn.Module):
    """Parallel attention at several time scales, then a feed-forward network; the most recent tokens go up.

    With ``X`` the tokens after ``shrink`` and ``X_r`` the ``queries`` most recent of them::

        X_r = X_r + sum over strides s of Spread_s(Attention_s(Merge_s(Norm(X))))
        out = X_r + MLP(Norm(X_r))

    Attention has queries of the chunks with tokens of ``X_r`` alone, keys and values of all chunks, and rotary
    positions. Every branch ends in an output projection of its own: the sum is one linear map of the branches side
    by side.

    Args:
        dim: D.
        queries: tokens that go up.
        shrink: tokens that are merged into one before anything else; 1 for none.
        strides: of the branches.
        heads: of every branch.
        ffn: hidden width of the feed-forward network, in D.
        merge: how a chunk becomes one.
        activation: in the feed-forward network.
        norm_name: before the branches and before the feed-forward network.
    """

    def __init__(
        self,
        dim: int,
        queries: int,
        shrink: int,
        *,
        strides: Sequence[int],
        heads: int,
        ffn: int,
        merge: MergeName,
        activation: ActivationName,
        norm_name: NormName,
    ) -> None:
        super().__init__()
        self.queries = queries
        self.shrink = Merge(dim, shrink, merge) if shrink > 1 else nn.Identity()
        self.branch_norm = norm(norm_name, dim)
        self.branches = nn.ModuleList(Branch(dim, heads, stride, queries, merge) for stride in strides)
        self.ffn_norm = norm(norm_name, dim)
        self.ffn = mlp([dim, ffn * dim, dim], activation)

    def forward(self, sequence: JaggedSequence) -> JaggedSequence:
        """Maps tokens (E, D) to the level's tokens, at most ``queries`` of an example."""
        sequence = self.shrink(sequence)
        normed = sequence.with_values(self.branch_norm(sequence.values_ED))
        kept = sequence.recent(self.queries)
        values_ED = kept.values_ED
        for branch in self.branches:
            values_ED = values_ED + branch(normed)
        return kept.with_values(values_ED + self.ffn(self.ffn_norm(values_ED)))
