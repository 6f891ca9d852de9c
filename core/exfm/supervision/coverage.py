"""How much of a student's traffic a teacher has supervised, and how old the supervision was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from exfm.supervision.joiner import Joined

AGE_EDGES_S = tuple(float(f"{10 ** (step / 4):.4g}") for step in range(33))
"""Ages in seconds at which a bin ends and the next begins: four bins in a factor of ten, from 1 s to three years."""


def _no_counts() -> npt.NDArray[np.int64]:
    return np.zeros(len(AGE_EDGES_S) + 1, np.int64)


@dataclass
class Coverage:
    """Counters of one teacher over some of a student's examples.

    An example is a hit where the teacher gives it a prediction of a task that the student takes: a row of nulls, as a
    teacher writes it that has not learned yet, is a miss.

    Attributes:
        hits: examples that the teacher has supervised.
        aged: those of them whose age is known.
        age_us: the sum of their ages.
        age_counts: how many lie in each bin: below the first edge, between two, at or above the last.
    """

    examples: int = 0
    hits: int = 0
    aged: int = 0
    age_us: int = 0
    age_counts: npt.NDArray[np.int64] = field(default_factory=_no_counts)

    def add(self, joined: Joined, tasks: Collection[str] = ()) -> None:
        """Counts examples.

        Args:
            tasks: those of the teacher's that the student takes; all where it takes none, but its embedding or states.
        """
        hit_B = joined.hits(tasks)
        self.examples += hit_B.numel()
        self.hits += int(hit_B.sum())
        if joined.age_us is not None:
            ages_us = joined.age_us[hit_B[joined.found]].numpy()
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
        """For a commit's manifest; ``of`` reads it back."""
        return {**vars(self), "age_counts": self.age_counts.tolist()}

    @classmethod
    def of(cls, counters: Mapping[str, Any]) -> Coverage:
        """From a commit's manifest."""
        return cls(**{**counters, "age_counts": np.array(counters["age_counts"], np.int64)})

    def as_vector(self) -> npt.NDArray[np.int64]:
        """All counts in one array: those of parts of the examples add up. ``of_vector`` reads it back."""
        return np.concatenate([[self.examples, self.hits, self.aged, self.age_us], self.age_counts])

    @classmethod
    def of_vector(cls, counts: npt.NDArray[np.int64]) -> Coverage:
        """From such an array."""
        examples, hits, aged, age_us = counts[:4].tolist()
        return cls(examples, hits, aged, age_us, counts[4:])

    @property
    def hit_rate(self) -> float | None:
        """Hits over examples."""
        return self.hits / self.examples if self.examples else None

    @property
    def age_s(self) -> float | None:
        """Mean age in seconds, where any is known."""
        return self.age_us / self.aged / 1e6 if self.aged else None

    def figures(self) -> dict[str, Any]:
        """For results.json."""
        return {"examples": self.examples, "hit_rate": self.hit_rate, "age_s": self.age_s}

    def histogram(self) -> dict[str, list[float] | list[int]]:
        """For results.json: one count more than edges."""
        return {"edges_s": list(AGE_EDGES_S), "counts": self.age_counts.tolist()}
