"""How events of a history meet the candidate item.

Legend: B examples, N tokens, E events, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence


class CandidateMeeting(nn.Module):
    """``[e + W (e * t) || t]``: every event ``e`` meets its example's candidate item ``t``, which follows them.

    Ours: how alike the two are is there before attention has learned to ask for it.

    Args:
        places: of the tokens whose sum is the candidate item; at least one.
        dim: D.
    """

    def __init__(self, places: Sequence[int], dim: int) -> None:
        super().__init__()
        self.places = tuple(places)
        self.linear = nn.Linear(dim, dim, bias=False)

    def forward(self, sequence: JaggedSequence, tokens_BND: Tensor) -> JaggedSequence:
        """Maps events (E, D) to the same with one event more per example, given tokens (B, N, D)."""
        target_BD = torch.stack([tokens_BND[:, place] for place in self.places]).sum(0)
        product_ED = sequence.values_ED * target_BD.index_select(0, sequence.example_index())
        met_ED = sequence.values_ED + self.linear(product_ED)
        return sequence.with_values(met_ED).append(target_BD.unsqueeze(1))
