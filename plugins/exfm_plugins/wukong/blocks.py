"""The interaction layer of Wukong.

Legend: B examples, N tokens in, D width of a token, K columns of the projection Y, C tokens that Y is made of,
F tokens of the factorization machine block, L tokens of the linear compression block, M = F + L tokens out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


def mlp(widths: Sequence[int], activation: Activation, *, activate_last: bool) -> nn.Sequential:
    """Linear layers of the given widths, input first, an activation between them and, where asked, after the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*(layers if activate_last else layers[:-1]))


class TokenMaps(nn.Module):
    """Several linear maps of the token axis, ``W_1 X, W_2 X, ...``, as one matrix product.

    Args:
        tokens: N.
        rows: tokens each of the maps makes.
    """

    def __init__(self, tokens: int, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = list(rows)
        self.weight_RN = nn.Parameter(torch.empty(sum(rows), tokens))
        nn.init.uniform_(self.weight_RN, -(tokens**-0.5), tokens**-0.5)

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, ...]:
        """Maps tokens (B, N, D) to one (B, rows_i, D) per map."""
        return torch.split(torch.einsum("rn,bnd->brd", self.weight_RN, tokens_BND), self.rows, dim=1)


class InputDependentProjection(nn.Module):
    """``Y = MLP(flatten(W_C X))``: a projection for each example, made of its linearly compressed tokens (section 3.6).

    Args:
        compressed: C.
        dim: D.
        hidden: widths of the MLP's hidden layers.
        shape: N and K.
        activation: of the hidden layers.
    """

    def __init__(
        self, compressed: int, dim: int, hidden: Sequence[int], shape: tuple[int, int], activation: Activation
    ) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = mlp([compressed * dim, *hidden, shape[0] * shape[1]], activation, activate_last=False)

    def forward(self, compressed_BCD: Tensor) -> Tensor:
        """Maps compressed tokens (B, C, D) to Y (B, N, K)."""
        y_BNK: Tensor = self.mlp(compressed_BCD.flatten(1)).unflatten(1, self.shape)
        return y_BNK


class WukongLayer(nn.Module):
    """``X' = LN([FMB(X) || LCB(X)] + X)``, from N tokens to M = F + L.

    ``FMB(X) = reshape(MLP(LN(flatten(X (X^T Y)))))`` and ``LCB(X) = W_L X``. Where M is not N, the residual is mapped
    to M tokens by a learned matrix. After layer i the tokens hold interactions of orders 1 to 2^i.

    Args:
        tokens: N.
        dim: D.
        fmb_tokens: F.
        lcb_tokens: L.
        k: columns of Y.
        fmb_hidden: widths of the hidden layers of the block's MLP.
        activation: of all hidden layers.
        compressed: C, the tokens that an input-dependent Y is made of; 0 makes Y a parameter.
        projection_hidden: widths of the hidden layers of the MLP that makes Y.
    """

    def __init__(
        self,
        tokens: int,
        dim: int,
        *,
        fmb_tokens: int,
        lcb_tokens: int,
        k: int,
        fmb_hidden: Sequence[int],
        activation: Activation,
        compressed: int = 0,
        projection_hidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.out_tokens = fmb_tokens + lcb_tokens
        self.fmb_shape = (fmb_tokens, dim)
        y_shape = (tokens, k)
        self.projection = (
            InputDependentProjection(compressed, dim, projection_hidden, y_shape, activation) if compressed else None
        )
        self.maps_residual = tokens != self.out_tokens
        # X^T Y with a static Y, W_L X and the residual's map all mix tokens: one matrix product serves the three.
        self.maps = TokenMaps(tokens, [compressed or k, lcb_tokens, self.out_tokens if self.maps_residual else 0])
        self.fm_norm = nn.LayerNorm(tokens * k)
        self.fmb = mlp([tokens * k, *fmb_hidden, fmb_tokens * dim], activation, activate_last=False)
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to tokens (B, M, D)."""
        compressed_BCD, lcb_BLD, residual_BMD = self.maps(tokens_BND)
        if self.projection is None:
            low_rank_BDK = compressed_BCD.mT
        else:
            low_rank_BDK = torch.bmm(tokens_BND.mT, self.projection(compressed_BCD))
        fm_BNK = torch.bmm(tokens_BND, low_rank_BDK)
        fmb_BFD = self.fmb(self.fm_norm(fm_BNK.flatten(1))).unflatten(1, self.fmb_shape)
        if not self.maps_residual:
            residual_BMD = tokens_BND
        out_BMD: Tensor = self.norm(torch.cat([fmb_BFD, lcb_BLD], dim=1) + residual_BMD)
        return out_BMD
