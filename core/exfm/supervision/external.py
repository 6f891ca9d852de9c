"""Supervision by teachers from elsewhere, in memory: sorted by example id, and joined like any other.

Legend: S rows, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from exfm.config.external_files import ExternalFiles
from exfm.supervision.joiner import Joined, Stored, align, lookup, miss, nothing_stored


class ExternalSupervision:
    """A teacher's supervision of S examples. It takes 8 bytes per row, and 4 per row and task; twice that to load.

    Its age is not known, so none is reported.

    Args:
        sorted_id: (S,) int64, ascending.
        probabilities: (S,) float32 by task, NaN where there is none.
    """

    def __init__(self, sorted_id: Tensor, probabilities: Mapping[str, Tensor]) -> None:
        self._sorted_id = sorted_id
        self._probabilities = probabilities

    @classmethod
    def load(cls, files: ExternalFiles) -> ExternalSupervision:
        """Reads all files.

        Raises:
            ConfigError: an example id is missing or repeated, or a value is not what its kind says.
        """
        rows = files.read()
        order = np.argsort(rows.example_id, kind="stable")
        sorted_id = rows.example_id[order]
        repeated = np.flatnonzero(sorted_id[1:] == sorted_id[:-1])
        if repeated.size:
            raise files.repeated(int(order[repeated + 1].min()))
        probabilities = {task: torch.from_numpy(values[order]) for task, values in rows.probabilities.items()}
        return cls(torch.from_numpy(sorted_id), probabilities)

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples (B,); those without any are misses."""
        if not self._sorted_id.numel():
            return Joined(miss(self._probabilities, example_id.shape[0]), torch.zeros_like(example_id).bool(), None)
        row, found = lookup(self._sorted_id, example_id)
        picked = {task: values[row] for task, values in self._probabilities.items()}
        return Joined(align(picked, None, found), found, None)

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """Nothing of any example."""
        return nothing_stored(example_id)
