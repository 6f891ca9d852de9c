"""Checks the transfers that a parameter strategy declares against student and teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from exfm.errors import suggestion
from exfm.interfaces.parameter_strategy import AddRows, CopyPart, ParameterStrategy, TeacherVectors
from exfm.interfaces.transfer_specs import PartSpec, StudentSpec, TeacherSpec
from exfm.interfaces.transfer_strategy import TransferStrategy


@dataclass(frozen=True)
class DeclaredTransfers:
    """Holds the checked transfers of a strategy.

    Attributes:
        shapes: the shapes in the student of the tensors of each copied part, by part.
        widths: K, the width of each source's vectors.
    """

    teacher: str
    copies: tuple[CopyPart, ...] = ()
    additions: tuple[AddRows, ...] = ()
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    widths: Mapping[TeacherVectors, int] = field(default_factory=dict)

    @property
    def frozen_parts(self) -> tuple[str, ...]:
        """Names the student's parts that training does not change."""
        copied = [copy.part for copy in self.copies if not copy.trainable]
        return (*copied, *(f"table/{add.table}" for add in self.additions if not add.keep_own_row))


def declared_transfers(strategy: TransferStrategy, student: StudentSpec, teacher: TeacherSpec) -> DeclaredTransfers:
    """Asks a strategy for its transfers and checks them; a strategy that takes no parameters has none.

    Raises:
        ValueError: a part, a table or a source is not there, does not fit, or is not required of the teacher.
    """
    if not isinstance(strategy, ParameterStrategy):
        return DeclaredTransfers(teacher.name)
    transfers = strategy.transfers()
    copies = tuple(transfer for transfer in transfers if isinstance(transfer, CopyPart))
    additions = tuple(transfer for transfer in transfers if isinstance(transfer, AddRows))
    _check_required(strategy, copies, additions)
    for copy in copies:
        _check_copy(strategy.name, copy, teacher.part(copy.part), student.part(copy.part))
    widths = {source: _width(source, teacher) for add in additions for source in add.sources}
    for add in additions:
        _check_sources(strategy.name, add, student, widths)
        _check_projection(strategy, add, widths[add.sources[0]], student.embedding_dim)
    shapes = {copy.part: student.part(copy.part).tensors for copy in copies}
    return DeclaredTransfers(teacher.name, copies, additions, shapes, widths)


def check_copied_once(declared: Sequence[DeclaredTransfers]) -> None:
    """Raises ValueError where two transfers of a student copy the same part."""
    parts = [copy.part for strategy in declared for copy in strategy.copies]
    twice = next((name for name in parts if parts.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is copied by two transfers: the later would overwrite the earlier; leave one out")


def _check_required(strategy: TransferStrategy, copies: Sequence[CopyPart], additions: Sequence[AddRows]) -> None:
    kinds = {source.kind for add in additions for source in add.sources}
    used: set[str] = set()
    if "state" in kinds:
        used.add("states")
    if copies or "table_row" in kinds:
        used.add("parameters")
    if missing := used - strategy.requires:
        raise ValueError(f"{strategy.name}: its transfers use {missing.pop()!r}, which `requires` has to say")


def _check_copy(name: str, copy: CopyPart, theirs: PartSpec, ours: PartSpec) -> None:
    if theirs.reads != ours.reads:
        raise ValueError(
            f"{name}: parts.{copy.part}: the teacher's reads {', '.join(theirs.reads)}, the student's "
            f"{', '.join(ours.reads)}: their weights do not mean the same"
        )
    if theirs.tensors == ours.tensors:
        return
    if ours.table is None:
        raise ValueError(
            f"{name}: parts.{copy.part}: the teacher's has {_shapes(theirs)}, the student's {_shapes(ours)}: "
            "they must be equal"
        )
    width, dim = theirs.tensors["weight"][1], ours.tensors["weight"][1]
    if not copy.leading_columns or width < dim:
        raise ValueError(
            f"{name}: parts.{copy.part}: the teacher's rows have width {width}, the student's {dim}: give both one "
            "embedding_dim, take the leading columns of a wider table, or add rows through a projection"
        )


def _shapes(spec: PartSpec) -> str:
    return ", ".join(f"{name} {shape}" for name, shape in spec.tensors.items())


def _width(source: TeacherVectors, teacher: TeacherSpec) -> int:
    if source.kind == "table_row":
        return teacher.part(f"table/{source.name}").tensors["weight"][1]
    if source.name not in teacher.states:
        raise ValueError(
            f"teacher {teacher.name!r} stores no state of {source.name!r}.{suggestion(source.name, teacher.states)}"
        )
    return teacher.states[source.name]


def _check_sources(name: str, add: AddRows, student: StudentSpec, widths: Mapping[TeacherVectors, int]) -> None:
    if add.table not in student.table_rows:
        raise ValueError(f"{name}: the student has no table {add.table!r}.{suggestion(add.table, student.table_rows)}")
    kinds = {(source.kind, widths[source]) for source in add.sources}
    if len(kinds) != 1:
        raise ValueError(f"{name}: rows are added to table {add.table!r} from sources of one kind and one width")
    for source in add.sources:
        table = source.name if source.kind == "table_row" else student.tables.get(source.name)
        if table != add.table:
            raise ValueError(
                f"{name}: {source.kind} {source.name!r} is of rows of table {table!r}, and is added to {add.table!r}"
            )


@torch.no_grad()
def _check_projection(strategy: TransferStrategy, add: AddRows, width: int, dim: int) -> None:
    """Raises ValueError unless a projection is the strategy's module and has the student's width."""
    inside = set(map(id, strategy.modules()))
    if id(add.projection) not in inside:
        raise ValueError(
            f"{strategy.name}: the projection of table {add.table!r} is no module of the strategy, so that nothing "
            "trains or saves it; assign it to an attribute"
        )
    # On the parameters' device, which is the meta device when only the config is checked.
    parameter = next(add.projection.parameters(), torch.zeros(0))
    projected = add.projection(torch.zeros(3, width, dtype=parameter.dtype, device=parameter.device))
    if projected.shape != (3, dim):
        raise ValueError(
            f"{strategy.name}: the projection of table {add.table!r} maps (3, {width}) to {tuple(projected.shape)}, "
            f"not to (3, {dim})"
        )
