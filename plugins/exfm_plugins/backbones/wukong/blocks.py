"""The interaction layer of Wukong.

Legend: B examples, N tokens in, D width of a token, K columns of the projection Y, C tokens that Y is computed from,
F tokens of the factorization machine block, L tokens of the linear compression block, M = F + L tokens out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exfm.layers import ActivationName, Attention, NormName, mlp, norm
from exfm_plugins.backbones.wukong.config import WukongConfig


class TokenMaps(nn.Module):
    """Several linear maps of the token axis, ``W_1 X, W_2 X, ...``, as a single matrix product.

    Args:
        tokens: N.
        rows: the number of tokens that each map outputs.
    """

    def __init__(self, tokens: int, rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = list(rows)
        self.weight_RN = nn.Parameter(torch.empty(sum(rows), tokens))
        # As nn.Linear initialises a layer with so many inputs.
        nn.init.uniform_(self.weight_RN, -(tokens**-0.5), tokens**-0.5)

    def forward(self, tokens_BND: Tensor) -> tuple[Tensor, ...]:
        """Maps tokens (B, N, D) to (B, rows_i, D) for each map."""
        # A product of two matrices with a single copy of X; einsum and a batched W X copy more, forward and backward.
        mapped_BRD = nn.functional.linear(tokens_BND.mT, self.weight_RN).mT
        return torch.split(mapped_BRD, self.rows, dim=1)


class InputDependentProjection(nn.Module):
    """``Y = MLP(flatten(W_C X))``: a projection for each example, computed from its compressed tokens (section 3.6).

    Args:
        widths: of the MLP's input, C * D, and of its hidden layers.
        shape: N and K.
        activation: of the hidden layers.
        bias: whether the MLP's layers have biases.
    """

    def __init__(
        self, widths: Sequence[int], shape: tuple[int, int], activation: ActivationName, *, bias: bool
    ) -> None:
        super().__init__()
        self.shape = shape
        self.mlp = mlp([*widths, shape[0] * shape[1]], activation, bias=bias)

    def forward(self, compressed_BCD: Tensor) -> Tensor:
        """Maps compressed tokens (B, C, D) to Y (B, N, K)."""
        y_BNK: Tensor = self.mlp(compressed_BCD.flatten(1)).unflatten(1, self.shape)
        return y_BNK


class CrossLayerAttention(nn.Module):
    """``Norm(X + MHA(X, [X_0 || X_1 || ...]))``: tokens attend over those of all earlier layers.

    Args:
        dim: D.
        heads: of the attention.
        name: of the norm.
        bias: whether the projections have biases.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int, name: NormName, *, bias: bool) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, bias=bias)
        self.norm = norm(name, dim)

    def forward(self, tokens_BMD: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Maps tokens (B, M, D) to (B, M, D), given the tokens (B, N_i, D) of each earlier layer."""
        output_BMD: Tensor = self.norm(tokens_BMD + self.attention(tokens_BMD, torch.cat(list(earlier), dim=1)))
        return output_BMD


class WukongLayer(nn.Module):
    """``X' = Norm([FMB(X) || LCB(X)] + X)``, from N tokens to M = F + L.

    ``FMB(X) = reshape(MLP(Norm(flatten(X (X^T Y)))))`` and ``LCB(X) = W_L X``. Where M is not N, the residual is
    mapped to M tokens by a learned matrix. After layer i the tokens hold interactions of orders 1 to 2^i.

    Args:
        tokens: N.
        dim: D.
        config: the backbone's.
        attends: whether ``X'`` then attends over the tokens of earlier layers.

    Raises:
        ValueError: ``attends``, and the heads do not divide the width.
    """

    def __init__(self, tokens: int, dim: int, config: WukongConfig, *, attends: bool) -> None:
        super().__init__()
        fmb_tokens, k, bias = config.num_fmb_tokens, config.k, config.bias == "all"
        self.out_tokens = fmb_tokens + config.num_lcb_tokens
        self.fmb_shape = (fmb_tokens, dim)
        self.projection = None
        projected = k
        if config.projection == "input_dependent":
            projected = config.projection_tokens
            widths = (projected * dim, *config.projection_hidden)
            self.projection = InputDependentProjection(widths, (tokens, k), config.activation, bias=bias)
        self.maps_residual = tokens != self.out_tokens
        # X^T Y with a static Y, W_L X and the residual's map all mix tokens, so a single matrix product computes them.
        self.maps = TokenMaps(tokens, [projected, config.num_lcb_tokens, self.out_tokens if self.maps_residual else 0])
        self.fm_norm = norm(config.norm, tokens * k)
        self.fmb = mlp([tokens * k, *config.fmb_hidden, fmb_tokens * dim], config.activation, bias=bias)
        self.norm = norm(config.norm, dim)
        self.attention = CrossLayerAttention(dim, config.heads, config.norm, bias=bias) if attends else None

    def forward(self, tokens_BND: Tensor, *before: Tensor) -> Tensor:
        """Maps tokens (B, N, D) to tokens (B, M, D).

        Args:
            tokens_BND: X.
            before: inputs of the layers before, which attention reads besides X.
        """
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
        return out_BMD if self.attention is None else self.attention(out_BMD, [*before, tokens_BND])
