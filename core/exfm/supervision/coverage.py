"""Counts the examples of a student that a teacher has supervised, and measures how old the supervision was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from exfm.interfaces.process_group import ProcessGroup
    from exfm.supervision.joiner import Joined

AGE_EDGES_S = tuple(float(f"{10 ** (step / 4):.4g}") for step in range(33))
"""Ages in seconds at which a bin ends and the next begins: four bins in a factor of ten, from 1 s to three years."""


def _no_counts() -> npt.NDArray[np.int64]:
    return np.zeros(len(AGE_EDGES_S) + 1, np.int64)


@dataclass
class Coverage:
    """Counts a teacher's hits and their ages over a student's examples.

    An example is a hit if the teacher has a prediction for it of a task that the student takes. A row of nulls is a
    miss, because a teacher that has not learned yet writes such rows.

    Attributes:
        hits: examples that the teacher has supervised.
        aged: hits whose supervision has a watermark, so that its age can be computed.
        age_us: sum of the ages of these hits.
        age_counts: histogram of these ages: below the first edge, between two edges, at or above the last edge.
    """

    examples: int = 0
    hits: int = 0
    aged: int = 0
    age_us: int = 0
    age_counts: npt.NDArray[np.int64] = field(default_factory=_no_counts)

    def add(self, joined: Joined, tasks: Collection[str] = ()) -> None:
        """Counts a batch of examples.

        Args:
            joined: supervision aligned with the batch.
            tasks: tasks of the teacher that the student takes; empty means all of them, for a student that takes only
                embeddings or states.
        """
        hit_B = joined.hits(tasks)
        self.examples += hit_B.numel()
        self.hits += int(hit_B.sum())
        if joined.age_us is not None:
            # Ages are stored only for examples that have a row: select the hits among those.
            ages_us = joined.age_us[hit_B[joined.has_row]].numpy()
            self.aged += ages_us.size
            self.age_us += int(ages_us.sum())
            bins = np.searchsorted(AGE_EDGES_S, ages_us / 1e6, side="right")
            self.age_counts += np.bincount(bins, minlength=self.age_counts.size)

    def __iadd__(self, other: Coverage) -> Coverage:
        self.examples += other.examples
        self.hits += other.hits
        self.aged += other.aged
        self.age_us += other.age_us
        self.age_counts += other.age_counts
        return self

    def as_counters(self) -> dict[str, Any]:
        """Returns the counters for a commit's manifest; ``from_counters`` reads them back."""
        return {**vars(self), "age_counts": self.age_counts.tolist()}

    @classmethod
    def from_counters(cls, counters: Mapping[str, Any]) -> Coverage:
        """Builds a coverage from the counters of a commit's manifest."""
        return cls(**{**counters, "age_counts": np.array(counters["age_counts"], np.int64)})

    def add_up(self, process_group: ProcessGroup) -> Coverage:
        """Adds up the counts of all processes; a collective operation."""
        import torch  # here, because `exfm status` reads the counts without it

        counts = process_group.all_gather(torch.from_numpy(self.as_vector()))
        return Coverage.from_vector(counts.sum(dim=0).numpy())

    def as_vector(self) -> npt.NDArray[np.int64]:
        """Packs all counts into a vector, which ranks can sum with a collective; ``from_vector`` unpacks it."""
        # Integers only: sums of ages stay exact where float64 would round beyond 2^53 microseconds.
        return np.concatenate([[self.examples, self.hits, self.aged, self.age_us], self.age_counts])

    @classmethod
    def from_vector(cls, counts: npt.NDArray[np.int64]) -> Coverage:
        """Unpacks a vector that ``as_vector`` has packed."""
        examples, hits, aged, age_us = counts[:4].tolist()
        return cls(examples, hits, aged, age_us, counts[4:])

    @property
    def hit_rate(self) -> float | None:
        """Returns hits over examples; None without examples."""
        return self.hits / self.examples if self.examples else None

    @property
    def age_s(self) -> float | None:
        """Returns the mean age in seconds; None where no hit has an age."""
        return self.age_us / self.aged / 1e6 if self.aged else None

    def figures(self) -> dict[str, Any]:
        """Returns the figures that results.json lists."""
        return {"examples": self.examples, "hit_rate": self.hit_rate, "age_s": self.age_s}

    def histogram(self) -> dict[str, list[float] | list[int]]:
        """Returns the histogram of ages for results.json, which has a count more than edges."""
        return {"edges_s": list(AGE_EDGES_S), "counts": self.age_counts.tolist()}
