"""Cross layers of DCN-V2.

Legend: B examples, W width of the flattened tokens, K experts, S rank, the width of the space an expert works in.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from exfm.layers import ActivationName, activation

ExpertGateName = Literal["softmax", "sigmoid"]


class CrossLayer(nn.Module):
    """``x' = x_0 * (W x + b) + x`` (equation 1): after layer l the crosses have degrees 1 to l + 1.

    Args:
        width: W.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0_BW: Tensor, x_BW: Tensor) -> Tensor:
        """Maps the network's input and the layer's, both (B, W), to (B, W)."""
        out_BW: Tensor = x0_BW * self.linear(x_BW) + x_BW
        return out_BW


class LowRankCrossLayer(nn.Module):
    """``x' = sum_i G_i(x) x_0 * (U_i h_i + b) + x``: a mixture of low-rank experts (section 3.2).

    ``h_i = V_i^T x`` or, with an activation g, ``h_i = g(C_i g(V_i^T x))``. A single expert has no gate.

    Args:
        width: W.
        rank: S.
        experts: K.
        gate: softmax over the experts, or a sigmoid for each.
        g: the activation; none leaves out C too.
    """

    def __init__(self, width: int, rank: int, experts: int, gate: ExpertGateName, g: ActivationName | None) -> None:
        super().__init__()
        self.shape = (experts, rank)
        self.down = nn.Linear(width, experts * rank, bias=False)
        self.core_KSS: nn.Parameter | None = None
        if g is not None:
            bound = rank**-0.5  # as nn.Linear initialises a layer of so many inputs
            self.core_KSS = nn.Parameter(torch.empty(experts, rank, rank).uniform_(-bound, bound))
            self.g = activation(g)
        self.gate = nn.Linear(width, experts) if experts > 1 else None
        self.softmax = gate == "softmax"
        # Its bias is b, and the same for all experts, as published.
        self.up = nn.Linear(experts * rank, width)

    def forward(self, x0_BW: Tensor, x_BW: Tensor) -> Tensor:
        """Maps the network's input and the layer's, both (B, W), to (B, W)."""
        hidden_BKS = self.down(x_BW).unflatten(1, self.shape)
        if self.core_KSS is not None:
            cored_BKS = torch.bmm(self.g(hidden_BKS).transpose(0, 1), self.core_KSS.mT).transpose(0, 1)
            # In `einsum` and `flatten`, whether to copy depends on B: torch.export would tie the graph to B > 1.
            hidden_BKS = self.g(cored_BKS.clone(memory_format=torch.contiguous_format))
        if self.gate is None:
            crossed_BW = self.up(hidden_BKS.flatten(1))
        else:
            scores_BK = self.gate(x_BW)
            gate_BK = scores_BK.softmax(1) if self.softmax else scores_BK.sigmoid()
            # U_1, ..., U_K side by side are a matrix, so the gated sum over experts is a single product.
            mixed_BW = nn.functional.linear((hidden_BKS * gate_BK.unsqueeze(2)).flatten(1), self.up.weight)
            crossed_BW = mixed_BW + gate_BK.sum(1, keepdim=True) * self.up.bias
        out_BW: Tensor = x0_BW * crossed_BW + x_BW
        return out_BW
