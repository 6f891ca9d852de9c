"""A teacher's compact features as an exfm transfer strategy.

Legend: K width of a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import (
    EntityStates,
    Recent,
    StudentOutput,
    StudentShape,
    Supervision,
    TableOffset,
    TeacherShape,
    TransferConfig,
    TransferStrategy,
)
from exfm.layers import MappedRows


class CompactFeatures(TransferStrategy):
    """The teacher's newest state of each user or item is added to the student's row of it, through a small map.

    ``row'_e = row_e + P s_e`` for entity ``e``: ``s_e`` is the state (``supervision.states``) that the teacher had of
    it at its last example before the student's, on whatever traffic and in whatever batch; ``P`` is learned with the
    student. A state holds at once what a history tells, and what other surfaces have taught the teacher; a row of the
    student's own learns it slowly, or never. This is transfer by representation as GEM names it, "compact, semantically
    aligned features", and by state as in LoopFM (arXiv 2605.29280), but without the lookup at serving: ``P s_e`` is
    folded into the row in every snapshot. What is served has the same tables, of the same size, and the same graph. To
    be as fresh as in the figures, what is served must get an entity's row after each of its examples, as from a
    parameter server.

    It adds no term to the loss.

    Args:
        config: see ``Config``.
        student: its features, and the tables they read.
        teacher: its states.

    Raises:
        ValueError: the teacher stores no states, or none of a feature that the student has.
    """

    name: ClassVar[str] = "compact_features"
    reads_states: ClassVar[bool] = True

    class Config(TransferConfig):
        """Fields of `compact_features`."""

        entities: tuple[str, ...] = Field(
            (), description="Which of the teacher's entities; all that are features of the student by default."
        )
        scale: float = Field(1.0, gt=0, description="P starts as the identity times this (ours).")

    def __init__(self, config: Config, student: StudentShape, teacher: TeacherShape) -> None:
        super().__init__(config, student, teacher)
        entities = _entities(config.entities, student, teacher)
        self._tables = {entity: student.tables[entity] for entity in entities}
        width = teacher.states[entities[0]]
        self.rows = nn.ModuleDict(
            {
                _key(table): MappedRows(
                    student.table_rows[table], width, student.embedding_dim, config.scale, dtype=torch.float16
                )
                for table in sorted(set(self._tables.values()))
            }
        )

    def table_offsets(self) -> Mapping[str, TableOffset]:
        """``P s`` by table."""
        return {table: self._rows_of(table) for table in self._tables.values()}

    def observe(self, states: Mapping[str, EntityStates]) -> None:
        """Keeps the newest state of each row."""
        for entity, table in self._tables.items():
            if entity in states:
                newest = states[entity].newest()
                self._rows_of(table).keep(newest.row, newest.state_SK)

    def recall(self, recent: Mapping[str, Recent]) -> None:
        """Holds, for the coming batch, what is newer than what is kept."""
        for table in set(self._tables.values()):
            own = [entity for entity, other in self._tables.items() if other == table]
            self._rows_of(table).recent = {entity: recent[entity] for entity in own if entity in recent}

    def _rows_of(self, table: str) -> MappedRows:
        found = self.rows[_key(table)]
        assert isinstance(found, MappedRows)
        return found

    def loss(self, student: StudentOutput, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """Nothing: what is transferred is in the tokens."""
        return student.representation_BR.new_zeros(())


def _entities(wanted: tuple[str, ...], student: StudentShape, teacher: TeacherShape) -> tuple[str, ...]:
    if not teacher.states:
        raise ValueError(
            f"compact_features: {teacher.name!r} stores no states; say which it shall under "
            f"models.{teacher.name}.supervision.states, such as {{user_id: [user_id, history]}}"
        )
    known = [entity for entity in teacher.states if entity in student.tables]
    missing = [entity for entity in wanted if entity not in known]
    if missing or not known:
        raise ValueError(
            f"compact_features: {', '.join(missing) or 'no entity'} is not both a state of {teacher.name!r} and a "
            f"feature of the student: the teacher has {', '.join(teacher.states)}, "
            f"the student {', '.join(student.tables)}"
        )
    return wanted or tuple(known)


def _key(table: str) -> str:
    """A name that torch accepts for a child module."""
    return f"table_{table}"
