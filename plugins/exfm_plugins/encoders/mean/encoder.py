"""The mean of a history's events as an exfm sequence encoder.

Legend: B examples, E events of all examples, N context tokens, D width of a token.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from exfm import SequenceEncoder
from exfm.components import JaggedSequence


class Mean(SequenceEncoder):
    """Averages an example's events in a summary token, zeros without events. It has no parameters.

    Computed on the jagged events alone, so there is no padding and the cost is proportional to the number of events.
    """

    name: ClassVar[str] = "mean"

    def forward(self, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
        """Maps events (E, D) with offsets to a summary token (B, 1, D). ``context_BND`` is not used."""
        return sequence.mean().unsqueeze(1)
