"""Joins supervision to batches by example id: vectorised, and a miss is a mask.

Legend: S supervised rows, B examples of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa
import torch
from torch import Tensor

from exfm.interfaces.transfer_strategy import Supervision


@dataclass(frozen=True)
class SupervisionRows:
    """A teacher's supervision of S examples, in any order.

    Attributes:
        example_id: (S,) int64.
        probabilities: (S,) float32 by task; NaN where the teacher had not seen a label of the task yet.
        watermark_us: (S,) int64: the teacher had trained on examples before this time only.
    """

    example_id: Tensor
    probabilities: Mapping[str, Tensor]
    watermark_us: Tensor

    @classmethod
    def from_table(cls, rows: pa.Table) -> SupervisionRows:
        """The rows of a supervision file."""
        prefix = "prediction_"
        return cls(
            torch.from_numpy(rows.column("example_id").to_numpy().copy()),
            {
                name.removeprefix(prefix): torch.from_numpy(rows.column(name).to_numpy().copy())
                for name in rows.column_names
                if name.startswith(prefix)
            },
            torch.from_numpy(rows.column("watermark").cast(pa.int64()).to_numpy().copy()),
        )

    def index(self) -> SupervisionIndex:
        """Ready to be joined."""
        order = torch.argsort(self.example_id, stable=True)
        return SupervisionIndex(self, self.example_id[order], order)


@dataclass(frozen=True)
class Joined:
    """Supervision aligned with B examples.

    Attributes:
        found: (B,) bool, whether the teacher has a row of the example.
        age_us: (B,) example time minus watermark, 0 where not found.
    """

    supervision: Supervision
    found: Tensor
    age_us: Tensor


@dataclass(frozen=True)
class SupervisionIndex:
    """Supervised rows, sorted by example id."""

    rows: SupervisionRows
    sorted_id: Tensor
    order: Tensor

    def join(self, example_id: Tensor, event_time_us: Tensor) -> Joined:
        """The supervision of the given examples; those without any are misses."""
        if self.sorted_id.numel() == 0:
            missing = torch.zeros_like(example_id)
            empty = {task: torch.zeros(example_id.shape[0]) for task in self.rows.probabilities}
            return Joined(Supervision(empty, {task: missing.bool() for task in empty}), missing.bool(), missing)
        place = torch.searchsorted(self.sorted_id, example_id).clamp(max=self.sorted_id.numel() - 1)
        found = self.sorted_id[place] == example_id
        row = self.order[place]
        picked = {task: values[row] for task, values in self.rows.probabilities.items()}
        hit = {task: found & ~values.isnan() for task, values in picked.items()}
        supervision = Supervision({task: values.nan_to_num(0.0) for task, values in picked.items()}, hit)
        return Joined(supervision, found, torch.where(found, event_time_us - self.rows.watermark_us[row], 0))
