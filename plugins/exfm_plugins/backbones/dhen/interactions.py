"""The interaction modules that a layer of DHEN combines. Each maps N tokens to M.

Legend: B examples, N tokens in, D width of a token, M tokens out, P = N (N - 1) / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from exfm.layers import ActivationName, Attention, NormName, mlp, norm


class TokenMap(nn.Linear):
    """``W X``: a linear map of the token axis, from N tokens to M."""

    def __init__(self, tokens: int, out_tokens: int) -> None:
        super().__init__(tokens, out_tokens, bias=False)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, M, D)."""
        return super().forward(tokens_BND.mT).mT


class Dot(nn.Module):
    """``reshape(MLP([x_i . x_j for i < j]))``: DLRM's dot products (arXiv 1906.00091), mapped to tokens by an MLP.

    Args:
        tokens: N, two or more.
        dim: D.
        out_tokens: M.
        hidden: widths of the MLP's hidden layers.
        activation: of the hidden layers.

    Raises:
        ValueError: a single token makes no pair.
    """

    pairs_P: Tensor

    def __init__(
        self, tokens: int, dim: int, out_tokens: int, hidden: Sequence[int], activation: ActivationName
    ) -> None:
        super().__init__()
        if tokens < 2:
            raise ValueError(
                "dhen: the module 'dot' needs pairs, and one of the layers gets a single token; "
                "leave 'dot' out of modules, or give more features or a larger num_tokens"
            )
        rows, columns = torch.triu_indices(tokens, tokens, offset=1)
        # Indices into the flattened (N, N) matrix, as index_select is faster than advanced indexing on two axes.
        self.register_buffer("pairs_P", rows * tokens + columns, persistent=False)
        self.shape = (out_tokens, dim)
        self.mlp = mlp([len(rows), *hidden, out_tokens * dim], activation)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, M, D)."""
        dots_BP = torch.bmm(tokens_BND, tokens_BND.mT).flatten(1).index_select(1, self.pairs_P)
        output_BMD: Tensor = self.mlp(dots_BP).unflatten(1, self.shape)
        return output_BMD


class Cross(nn.Module):
    """``W_m (X * (V U X + b) + X)``: a cross layer of DCN (arXiv 2008.13535) over all numbers of X, mapped to M tokens.

    The input of the layer is both of the factors that DCN-V2 calls x_0 and x_l.

    Args:
        tokens: N.
        dim: D.
        out_tokens: M.
        rank: of ``V U``; 0 makes it a full matrix.
    """

    def __init__(self, tokens: int, dim: int, out_tokens: int, rank: int) -> None:
        super().__init__()
        width = tokens * dim
        low_rank = nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width)) if rank else None
        self.matrix = low_rank or nn.Linear(width, width)
        self.map = TokenMap(tokens, out_tokens)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, M, D)."""
        factor_BND = self.matrix(tokens_BND.flatten(1)).view_as(tokens_BND)
        return cast(Tensor, self.map(torch.addcmul(tokens_BND, tokens_BND, factor_BND)))


class SelfAttention(nn.Module):
    """``W_m TransformerEncoderLayer(X)`` (arXiv 1706.03762): attention among tokens, then an MLP for each of them.

    ``A = Norm(X + MHA(X, X))`` and ``Norm(A + MLP(A))`` is mapped to M tokens. There is no dropout.

    Args:
        tokens: N.
        dim: D.
        out_tokens: M.
        heads: of the attention.
        hidden: width of the MLP's hidden layer.
        activation: of the hidden layer.
        name: of the norm.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        out_tokens: int,
        heads: int,
        hidden: int,
        activation: ActivationName,
        name: NormName,
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.attention_norm = norm(name, dim)
        self.mlp = mlp([dim, hidden, dim], activation)
        self.mlp_norm = norm(name, dim)
        self.map = TokenMap(tokens, out_tokens)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to (B, M, D)."""
        mixed_BND = self.attention_norm(tokens_BND + self.attention(tokens_BND, tokens_BND))
        return cast(Tensor, self.map(self.mlp_norm(mixed_BND + self.mlp(mixed_BND))))
