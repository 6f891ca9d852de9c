"""Parameter sharing as an exfm transfer strategy.

Legend: E width of the teacher's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from exfm import ParameterStrategy
from exfm.layers import scaled_identity
from exfm.transfer import AddRows, CopyPart, PartSpec, StudentSpec, TeacherSpec, TeacherVectors, TransferConfig

Mode = Literal["copied", "frozen", "fine_tuned", "added", "projected"]

_THROUGH_A_MAP = ("added", "projected")


class ParameterSharing(ParameterStrategy):
    """The student takes over parts of the teacher: tables, sequence encoders, projections of numbers.

    GEM names it beside distillation and representation ("parameter sharing", engineering post of 2025-11-10) without
    details; the modes are ours. A part has the same name in both models, and each has a mode:

    - ``copied``: every window starts from the teacher's newest weights, and training goes on from them;
    - ``frozen``: every window has the teacher's newest weights, and nothing trains them;
    - ``fine_tuned``: the teacher's first snapshot is where the student starts from, once;
    - ``added``, for a table of any width: ``row'_e = row_e + P t_e``, with ``row_e`` the student's own row, ``t_e`` the
      teacher's newest row and ``P`` learned with the student;
    - ``projected``, for a table of any width: ``row'_e = P t_e``; the student has no separate row.

    The newest weights are those of the newest snapshot that the teacher's delay allows at the window's start. Before
    the first snapshot, a frozen part is as it was initialised. ``P t_e`` is folded into the table of every snapshot:
    the served model has the same tables, of the same size, and the same graph.

    It adds no term to the loss.

    Args:
        config: see ``Config``.
        student: its parts.
        teacher: its parts.

    Raises:
        ValueError: student or teacher has no such part, or the teacher's does not fit.
    """

    name: ClassVar[str] = "parameter_sharing"
    requires = frozenset({"parameters"})

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

    def __init__(self, config: Config, student: StudentSpec, teacher: TeacherSpec) -> None:
        super().__init__(config, student, teacher)
        self.maps = nn.ModuleDict()
        self._transfers = [self._transfer(name, mode, student, teacher) for name, mode in config.parts.items()]

    def transfers(self) -> Sequence[CopyPart | AddRows]:
        """Returns a copy of each part, or its rows through a map, in the order of the file."""
        return self._transfers

    def _transfer(self, name: str, mode: Mode, student: StudentSpec, teacher: TeacherSpec) -> CopyPart | AddRows:
        config = self.config
        assert isinstance(config, ParameterSharing.Config)
        source, target = teacher.part(name), student.part(name)
        if mode in _THROUGH_A_MAP:
            if target.table is None:
                raise ValueError(
                    f"parameter_sharing: parts.{name}: {mode} is for tables; allowed: copied, frozen, fine_tuned"
                )
            width, dim = source.tensors["weight"][1], target.tensors["weight"][1]
            projection = self.maps[f"part_{name}"] = scaled_identity(width, dim, config.scale)
            sources = (TeacherVectors("table_row", target.table),)
            return AddRows(target.table, sources, projection, keep_own_row=mode == "added")
        _check_width(name, source, target, config.slice)
        schedule: Literal["once", "every_window"] = "once" if mode == "fine_tuned" else "every_window"
        return CopyPart(name, schedule, trainable=mode != "frozen", leading_columns=config.slice)


def _check_width(name: str, source: PartSpec, target: PartSpec, may_slice: bool) -> None:
    """Raises ValueError unless a table has the student's width, or may be sliced to it."""
    if target.table is None:
        return
    width, dim = source.tensors["weight"][1], target.tensors["weight"][1]
    if width < dim or (width > dim and not may_slice):
        advice = "" if width < dim else f"slice: true, which takes the first {dim} columns, or "
        raise ValueError(
            f"parameter_sharing: parts.{name}: the teacher's rows have width {width}, the student's {dim}: give both "
            f"one embedding_dim, or say {advice}the mode added or projected"
        )
