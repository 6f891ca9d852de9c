"""Parameter sharing as an exfm transfer strategy.

Legend: E width of the teacher's rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import (
    PartShape,
    Recent,
    StudentOutput,
    StudentShape,
    Supervision,
    TableOffset,
    TableRows,
    TeacherShape,
    TransferConfig,
    TransferStrategy,
)
from exfm.layers import MappedRows

Mode = Literal["copied", "frozen", "fine_tuned", "added", "projected"]

_THROUGH_A_MAP = ("added", "projected")


class ParameterSharing(TransferStrategy):
    """The student takes parts of the teacher over: tables, sequence encoders, projections of numbers.

    GEM names it beside distillation and representation ("parameter sharing", engineering post of 2025-11-10) and says
    no more; what follows is ours. A part has the same name in both models, and each has a mode:

    - ``copied``: every window starts from the teacher's newest weights, and training goes on from them;
    - ``frozen``: every window has the teacher's newest weights, and nothing trains them;
    - ``fine_tuned``: the teacher's first snapshot is where the student starts from, once;
    - ``added``, for a table of any width: ``row'_e = row_e + P t_e``, with ``row_e`` the student's own row, ``t_e`` the
      teacher's newest one and ``P`` learned with the student;
    - ``projected``, for a table of any width: ``row'_e = P t_e``; the student has no row of its own.

    The newest weights are those of the newest snapshot that the teacher's delay allows at the window's start. Before
    the first one, a frozen part is as it was initialised. ``P t_e`` is folded into the table of every snapshot: what is
    served has the same tables, of the same size, and the same graph.

    It adds no term to the loss.

    Args:
        config: see ``Config``.
        student: its parts.
        teacher: its parts.

    Raises:
        ValueError: one of them has no such part, or the teacher's does not fit.
    """

    name: ClassVar[str] = "parameter_sharing"
    reads_parts: ClassVar[bool] = True

    class Config(TransferConfig):
        """Fields of `parameter_sharing`."""

        parts: dict[str, Mode] = Field(
            min_length=1,
            description="How each part is taken: table/TABLE, sequence_encoder/SEQUENCE, event_numbers/SEQUENCE or "
            "dense_tokens.",
        )
        slice: bool = Field(
            False, description="Of a wider table of the teacher, take the leading columns; else it is an error."
        )
        scale: float = Field(
            1.0, gt=0, allow_inf_nan=False, description="P of added and projected starts as the identity times this."
        )

    started: Tensor

    def __init__(self, config: Config, student: StudentShape, teacher: TeacherShape) -> None:
        super().__init__(config, student, teacher)
        self._modes = dict(config.parts)
        self._tables = dict(student.tables)
        self._shapes: dict[str, PartShape] = {}
        maps: dict[str, MappedRows] = {}
        for part, mode in config.parts.items():
            given, own = teacher.part(part), student.part(part)
            self._shapes[part] = own
            if mode in _THROUGH_A_MAP:
                maps[_key(part)] = _mapped(part, mode, given, own, config.scale)
            else:
                _check_fit(part, given, own, config.slice)
        self.maps = nn.ModuleDict(maps)
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def teacher_parts(self) -> tuple[str, ...]:
        """All parts but those that have been taken once and are fine-tuned since."""
        taken = "fine_tuned" if self.started else None
        return tuple(part for part, mode in self._modes.items() if mode != taken)

    def frozen_parts(self) -> tuple[str, ...]:
        """The frozen and the projected ones."""
        return tuple(part for part, mode in self._modes.items() if mode in ("frozen", "projected"))

    def table_offsets(self) -> Mapping[str, TableOffset]:
        """``P t`` by table."""
        return {
            table: self._map_of(part)
            for part, shape in self._shapes.items()
            if (table := shape.table) is not None and self._modes[part] in _THROUGH_A_MAP
        }

    @torch.no_grad()
    def refresh(self, parts: Mapping[str, Mapping[str, Tensor]]) -> Mapping[str, Mapping[str, Tensor]]:
        """Keeps the rows that go through a map, and hands the other parts on in the student's shapes."""
        written = {}
        for part, tensors in parts.items():
            shapes = self._shapes[part].tensors
            if self._modes[part] in _THROUGH_A_MAP:
                self._map_of(part).vectors_RK.copy_(tensors["weight"])
                if self._modes[part] == "projected":
                    written[part] = {"weight": torch.zeros(shapes["weight"])}
            else:
                # A slice as long as the tensor takes all of it.
                written[part] = {name: tensors[name][tuple(map(slice, shape))] for name, shape in shapes.items()}
        self.started.fill_(True)
        return written

    def follow(self, rows: Mapping[str, TableRows]) -> None:
        """Brings the rows that go through a map up to date, where the teacher stores them."""
        for part, changed in rows.items():
            if self._modes.get(part) in _THROUGH_A_MAP:
                newest = changed.newest()
                self._map_of(part).keep(newest.row, newest.weight_SE)

    def recall(self, recent: Mapping[str, Recent]) -> None:
        """Holds, for the coming batch, what is newer than the rows it has."""
        for part, shape in self._shapes.items():
            if self._modes[part] in _THROUGH_A_MAP:
                own = {name: one for name, one in recent.items() if self._tables.get(name) == shape.table}
                self._map_of(part).recent = own

    def _map_of(self, part: str) -> MappedRows:
        found = self.maps[_key(part)]
        assert isinstance(found, MappedRows)
        return found

    def loss(self, student: StudentOutput, supervision: Supervision, labels: Mapping[str, Tensor]) -> Tensor:
        """Nothing: what is transferred is in the weights."""
        return student.representation_BR.new_zeros(())


def _mapped(part: str, mode: str, given: PartShape, own: PartShape, scale: float) -> MappedRows:
    if own.table is None:
        raise ValueError(f"parameter_sharing: parts.{part}: {mode} is for tables; allowed: copied, frozen, fine_tuned")
    rows, width = given.tensors["weight"]
    # Every window starts by filling it again, so a snapshot of the student need not hold the teacher's table.
    return MappedRows(rows, width, own.tensors["weight"][1], scale, saved=False)


def _check_fit(part: str, given: PartShape, own: PartShape, may_slice: bool) -> None:
    place = f"parameter_sharing: parts.{part}"
    if given.reads != own.reads:
        raise ValueError(
            f"{place}: the teacher's reads {', '.join(given.reads)}, the student's {', '.join(own.reads)}: "
            "their weights do not mean the same"
        )
    if given.tensors == own.tensors:
        return
    if own.table is None:
        raise ValueError(f"{place}: the teacher's has {_say(given)}, the student's {_say(own)}: they must be equal")
    width, dim = given.tensors["weight"][1], own.tensors["weight"][1]
    if not may_slice or width < dim:
        advice = "" if width < dim else f"slice: true, which takes the first {dim} columns, or "
        raise ValueError(
            f"{place}: the teacher's rows have width {width}, the student's {dim}: give both one embedding_dim, or say "
            f"{advice}the mode added or projected"
        )


def _say(part: PartShape) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in part.tensors.items())


def _key(part: str) -> str:
    """A name that torch accepts for a child module."""
    return f"part_{part}"
