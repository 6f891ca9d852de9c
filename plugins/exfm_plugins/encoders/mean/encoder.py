"""The mean of a history's events as an exfm sequence encoder.

Legend: B examples, E events of all examples, N context tokens, D width of a token.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from exfm import SequenceEncoder
from exfm.components import JaggedSequence


class Mean(SequenceEncoder):
    """One summary token: the average of an example's events, and zeros where it has none. It has no parameters.

    Computed on the jagged events alone: there is no padding, and cost follows the events there are.
    """

    name: ClassVar[str] = "mean"

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets to one token (B, 1, D). ``context_BND`` is not used."""
        return sequence.mean().unsqueeze(1)
