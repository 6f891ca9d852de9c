"""A teacher's compact features as an exfm transfer strategy.

Legend: K width of a state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import nn

from exfm import ParameterStrategy
from exfm.layers import scaled_identity
from exfm.transfer import AddRows, StudentSpec, TeacherSpec, TeacherVectors, TransferConfig


class CompactFeatures(ParameterStrategy):
    """The teacher's newest state of each user or item is added to the student's row of it, through a small map.

    ``row'_e = row_e + P s_e`` for entity ``e``: ``s_e`` is the state (``supervision.states``) that the teacher had of
    it at its last example before the student's, on whatever traffic and in whatever batch; ``P`` is learned with the
    student. A state holds at once an entity's history, and the teacher's knowledge from other surfaces; the
    student's row learns them slowly, or never. This is transfer by representation as GEM names it, "compact,
    semantically aligned features", and by state as in LoopFM (arXiv 2605.29280), but without the lookup at serving:
    ``P s_e`` is folded into the row in every snapshot. The served model has the same tables, of the same size, and the
    same graph. To be as fresh as in the figures, the served table must get an entity's row after each of its examples,
    as from a parameter server.

    It adds no term to the loss.

    Args:
        config: see ``Config``.
        student: its features, and the tables they read.
        teacher: its states.

    Raises:
        ValueError: the teacher stores no states, or none of a feature that the student has.
    """

    name: ClassVar[str] = "compact_features"
    requires = frozenset({"states"})

    class Config(TransferConfig):
        """Fields of `compact_features`."""

        entities: tuple[str, ...] = Field(
            (), description="Which of the teacher's entities; all that are features of the student by default."
        )
        scale: float = Field(1.0, gt=0, description="P starts as the identity times this (ours).")

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self._sources: dict[str, tuple[TeacherVectors, ...]] = {}
        for entity in _entities(config.entities, student, teacher):
            table = student.tables[entity]
            self._sources[table] = (*self._sources.get(table, ()), TeacherVectors("state", entity))
        widths = {table: teacher.states[sources[0].name] for table, sources in self._sources.items()}
        self.maps = nn.ModuleDict()
        for table in sorted(self._sources):
            self.maps[_key(table)] = scaled_identity(widths[table], student.embedding_dim, config.scale)

    def transfers(self) -> Sequence[AddRows]:
        """Adds ``P s`` to the rows of each table."""
        return [AddRows(table, sources, self.maps[_key(table)]) for table, sources in self._sources.items()]


def _entities(selected: tuple[str, ...], student: StudentSpec, teacher: TeacherSpec) -> tuple[str, ...]:
    """Checks the selected entities, or selects all common entities if none is selected."""
    common = [entity for entity in teacher.states if entity in student.tables]
    missing = [entity for entity in selected if entity not in common]
    if missing or not common:
        raise ValueError(
            f"compact_features: {', '.join(missing) or 'no entity'} is not both a state of {teacher.name!r} and a "
            f"feature of the student: the teacher has {', '.join(teacher.states)}, "
            f"the student {', '.join(student.tables)}"
        )
    return selected or tuple(common)


def _key(table: str) -> str:
    """Returns the name of a table's child module: prefixed, because torch refuses a child called `items`."""
    return f"table_{table}"
