"""Mixes experts' outputs with weights computed from an input.

Legend: B examples, I width of the input, E experts, R width of an expert's output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ExpertGate(nn.Module):
    """Computes ``sum over e of softmax(W x)_e f_e``, the gate of a mixture of experts.

    Args:
        width: I.
        experts: E.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, experts, bias=False)

    def forward(self, input_BI: Tensor, experts_BER: Tensor) -> Tensor:
        """Maps an input (B, I) and the experts' outputs (B, E, R) to their weighted sum (B, R)."""
        weight_B1E = self.linear(input_BI).softmax(dim=1).unsqueeze(1)
        return torch.bmm(weight_B1E, experts_BER).squeeze(1)
