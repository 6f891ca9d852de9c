"""Holds the supervision of external teachers in memory, sorted by example id, and joins it to batches.

Legend: S rows, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from exfm.config.external_files import ExternalFiles
from exfm.config.loading import Experiment
from exfm.mappings import take_rows
from exfm.supervision.joiner import Joined, Stored, align, lookup, miss, nothing_stored


class ExternalSupervision:
    """Joins an external teacher's supervision of S examples.

    It takes 8 bytes per row, and 4 bytes per row and task; loading takes twice as much. No age is reported, because
    the files do not say up to which time the teacher had trained.

    Args:
        sorted_id: (S,) int64, ascending.
        probabilities: (S,) float32 by task, NaN where the teacher has no prediction.
    """

    def __init__(self, sorted_id: Tensor, probabilities: Mapping[str, Tensor]) -> None:
        self._sorted_id = sorted_id
        self._probabilities = probabilities

    @classmethod
    def load(cls, files: ExternalFiles) -> ExternalSupervision:
        """Reads and sorts all files of a teacher.

        Raises:
            ConfigError: an example id is missing or repeated, or a value is outside the range of its kind.
        """
        rows = files.read()
        # A stable sort keeps repeated ids in the order of the files, so that the error names the second occurrence.
        order = np.argsort(rows.example_id, kind="stable")
        sorted_id = rows.example_id[order]
        repeated = np.flatnonzero(sorted_id[1:] == sorted_id[:-1])
        if repeated.size:
            raise files.repeated(int(order[repeated + 1].min()))
        probabilities = {task: torch.from_numpy(values[order]) for task, values in rows.probabilities.items()}
        return cls(torch.from_numpy(sorted_id), probabilities)

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """Returns the supervision of B examples; an example without a row is a miss."""
        if not self._sorted_id.numel():
            return Joined(miss(self._probabilities, example_id.shape[0]), torch.zeros_like(example_id).bool(), None)
        row_B, has_row_B = lookup(self._sorted_id, example_id)
        aligned = take_rows(self._probabilities, row_B)
        return Joined(align(aligned, None, has_row_B), has_row_B, None)

    def stored(self, example_id: Tensor, event_time_us: Tensor) -> Stored:
        """Returns no rows: external files hold predictions only, and no states or embeddings."""
        return nothing_stored(example_id)


def external_teachers(experiment: Experiment, names: Collection[str]) -> dict[str, ExternalSupervision]:
    """Reads the supervision of the external teachers among the named teachers into memory.

    Raises:
        ConfigError: an example id is missing or repeated, or a value is outside the range of its kind.
    """
    supervision: dict[str, ExternalSupervision] = {}
    for name, config in experiment.config.external_teachers.items():
        if name in names:
            supervision[name] = ExternalSupervision.load(ExternalFiles(config, f"teachers.{name}"))
    return supervision
