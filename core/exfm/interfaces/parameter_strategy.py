"""Declares ParameterStrategy, the kind of transfer that takes parameters of the teacher.

Legend: K width of a teacher's vector, D width of the student's rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from exfm.interfaces.schema import LABEL_KINDS, LabelKind
from exfm.interfaces.transfer_strategy import TransferStrategy


@dataclass(frozen=True)
class TeacherVectors:
    """Names vectors that a teacher publishes, a vector per row of a table.

    Attributes:
        kind: ``state``, the teacher's states of an entity, from ``supervision.states``; or ``table_row``, the rows of
            a table, from its snapshots and, between them, from ``supervision.rows``.
        name: the entity, a categorical feature; or the table.
    """

    kind: Literal["state", "table_row"]
    name: str


@dataclass(frozen=True)
class CopyPart:
    """Overwrites a part of the student with the teacher's part of the same name.

    The weights are those of the teacher's newest snapshot that its delay allows at a window's start.

    Attributes:
        part: the name of the part, such as ``sequence_encoder/history`` or ``table/ad_id``.
        schedule: ``every_window``, or ``once``, from the teacher's first snapshot.
        trainable: whether the student goes on training it.
        leading_columns: whether of a wider table of the teacher the leading columns are taken.
    """

    part: str
    schedule: Literal["once", "every_window"]
    trainable: bool = True
    leading_columns: bool = False


@dataclass(frozen=True)
class AddRows:
    """Adds ``projection(v)`` to each row of a student's table, ``v`` being the row's newest vector.

    ``v`` is zeros before the teacher's first vector. The core keeps ``v`` up to date and causal: an example sees
    vectors that were computed at earlier examples, less the teacher's lag. It adds the offset in every lookup, and
    folds it into the tables of every snapshot.

    Attributes:
        table: the student's table.
        sources: the vectors, all of equal kind and width; of several entities of a table the newest counts.
        projection: maps (..., K) to (..., D), each vector by itself; a module of the strategy.
        keep_own_row: whether the student's own row stays and is trained; else it is frozen, and zeros from the first
            window on that begins with vectors of the teacher.
    """

    table: str
    sources: tuple[TeacherVectors, ...]
    projection: nn.Module
    keep_own_row: bool = True


class ParameterStrategy(TransferStrategy):
    """Declares which of the teacher's parameters the student takes. It adds no term to the loss.

    The core copies, adds, and keeps the teacher's vectors, once for all strategies of a student. ``requires`` has to
    say ``states`` where a source is a state, and ``parameters`` where a part or a table's row is taken.
    """

    _extends_a_kind: ClassVar[bool] = True
    label_kinds: ClassVar[frozenset[LabelKind]] = LABEL_KINDS

    @abstractmethod
    def transfers(self) -> Sequence[CopyPart | AddRows]:
        """Returns the transfers; called once, when the strategy has been built."""
