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
    """Returns the offsets of the examples' chunks, (B + 1,).

    Chunks are counted from the newest token, so that older tokens do not change the chunks of newer tokens::

        tokens, stride 2    a b c d e
        chunk               0 1 1 2 2

    """
    counts_B = (sequence.lengths + stride - 1) // stride
    return torch.cat([sequence.offsets[:1], counts_B.cumsum(0)])


def chunk_index(sequence: JaggedSequence, stride: int) -> Tensor:
    """Returns the chunk that each token is in, (E,)."""
    newest_E = chunk_offsets(sequence, stride)[1:][sequence.example_index()] - 1
    return newest_E - sequence.positions() // stride


class ChunkMerge(nn.Module):
    """Merges each chunk of tokens: to their mean, or by a linear map of their concatenation.

    The oldest chunk of an example may have fewer tokens: the mean is over these, the map reads zeros for the others.

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
        # The newest token of each chunk, from which `back_S` counts older tokens.
        newest_C = (positions_E % self.stride == 0).nonzero().squeeze(1)
        back_S = torch.arange(self.stride, device=newest_C.device)
        exists_CS = positions_E[newest_C].unsqueeze(1) + back_S < lengths_E[newest_C].unsqueeze(1)
        rows_CS = torch.where(exists_CS, newest_C.unsqueeze(1) - back_S, 0)
        chunks_CSD = values_ED.index_select(0, rows_CS.flatten()).view(*rows_CS.shape, values_ED.shape[1])
        chunks_CSD = chunks_CSD.masked_fill(~exists_CS.unsqueeze(2), 0)
        if self.linear is None:
            merged_CD = chunks_CSD.sum(1) / exists_CS.sum(1, keepdim=True)
        else:
            # Back to the input's dtype under autocast, because levels add residuals to these tokens.
            merged_CD = self.linear(chunks_CSD.flatten(1)).to(values_ED.dtype)
        longest = -(-sequence.max_length // self.stride)
        # Ages are dropped: no module of a pyramid reads them.
        return JaggedSequence(merged_CD, chunk_offsets(sequence, self.stride), longest)


class Branch(nn.Module):
    """Attends among chunks of tokens, a time scale, and copies a chunk's result to each of its tokens.

    Args:
        dim: D.
        heads: of the attention.
        stride: S; 1 for tokens themselves.
        queries: the most recent tokens that get a result.
        merge: how a chunk is merged.
    """

    def __init__(self, dim: int, heads: int, stride: int, queries: int, merge: MergeName) -> None:
        super().__init__()
        self.stride, self.queries = stride, queries
        self.merge = ChunkMerge(dim, stride, merge) if stride > 1 else nn.Identity()
        self.attention = JaggedAttention(dim, heads, causal=False)

    def forward(self, sequence: JaggedSequence) -> Tensor:
        """Maps tokens (E, D) to an update of the most recent ones."""
        chunks = -(-self.queries // self.stride)  # rounded up, so that every kept token is in a chunk with a result
        mixed: JaggedSequence = self.attention(self.merge(sequence), chunks)
        if self.stride == 1:
            return mixed.values_ED
        return mixed.values_ED.index_select(0, chunk_index(sequence.recent(self.queries), self.stride))


class PyramidLevel(nn.Module):
    """Parallel attention at several time scales, then a feed-forward network, of the most recent tokens.

    With ``X`` the tokens after ``shrink`` and ``X_r`` the ``queries`` most recent of them::

        X_r = X_r + sum over strides s of Spread_s(Attention_s(Merge_s(Norm(X))))
        out = X_r + MLP(Norm(X_r))

    Attention has queries of the chunks with tokens of ``X_r`` alone, keys and values of all chunks, and rotary
    positions. Every branch ends in a separate output projection, so the sum is a linear map of the concatenated
    branches.

    Args:
        dim: D.
        queries: the number of tokens that are kept.
        shrink: the number of tokens that are merged first; 1 for none.
        strides: of the branches.
        heads: of every branch.
        ffn: hidden width of the feed-forward network, in D.
        merge: how a chunk is merged.
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
        self.shrink = ChunkMerge(dim, shrink, merge) if shrink > 1 else nn.Identity()
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
