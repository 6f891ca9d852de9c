"""Loads the parameters that a student takes from its teachers: copied parts, and vectors that are added to rows.

Legend: R rows of a table, K width of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parameter_strategy import AddRows, CopyPart, TeacherVectors
from exfm.mappings import add_prefix, map_values, strip_prefix
from exfm.modeling.parts import freeze, part_entries
from exfm.modeling.ranking_model import RankingModel
from exfm.modeling.row_offset import RowOffset
from exfm.modeling.vector_table import VectorTable
from exfm.supervision.joiner import ROW, STATE
from exfm.transfer.declared_transfers import DeclaredTransfers
from exfm.transfer.row_offsets import OffsetSum, ProjectedVectors
from exfm.transfer.vector_feed import FedTable

ModelParts = Mapping[str, Mapping[str, Tensor]]
"""Tensors of named model parts: by model part, and by name in it."""

_Source = tuple[str, tuple[TeacherVectors, ...]]
_VECTORS, _COPIED, _START = "vectors.", "copied", "start."


class StudentParameters:
    """Applies declared transfers to a student.

    A table of teacher vectors is stored once per teacher and sources, however many strategies and served inputs
    read it.

    Args:
        model: the student.
        declared: the transfers of each strategy, in the order of the file.
        features: the table that each categorical feature of the stream reads.
        device: the device of the tables of vectors.
        parallel_model: the plan's handle of the student, which writes copied parts to wherever they are placed.
    """

    def __init__(
        self,
        model: RankingModel,
        declared: Sequence[DeclaredTransfers],
        features: Mapping[str, str],
        device: torch.device,
        parallel_model: ParallelModel,
    ) -> None:
        self.model, self._parallel_model = model, parallel_model
        self._features = features
        self._shapes: dict[str, Mapping[str, tuple[int, ...]]] = {}
        self._copies: list[tuple[str, CopyPart]] = []
        self._additions: list[tuple[str, AddRows]] = []
        for strategy in declared:
            self._shapes |= strategy.shapes
            self._copies += [(strategy.teacher, copy) for copy in strategy.copies]
            self._additions += [(strategy.teacher, add) for add in strategy.additions]
        self._copied: set[str] = set()
        self._served = {} if model.inputs is None else model.inputs.stored()
        self._tables: dict[_Source, VectorTable] = {}
        for (teacher, entity), table in self._served.items():
            # Strategies read a served table too, if it stores a single vector per row.
            if table.length == 1:
                self._tables[teacher, (TeacherVectors("state", entity),)] = table
        self._saved: dict[str, VectorTable] = {}
        self._start: dict[str, Tensor] = {}
        for strategy in declared:
            for add in strategy.additions:
                self._add_table(strategy.teacher, add, strategy.widths[add.sources[0]], device)
        self._add_offsets()
        freeze(model, [name for strategy in declared for name in strategy.frozen_parts])

    def _add_table(self, teacher: str, add: AddRows, width: int, device: torch.device) -> None:
        source = (teacher, add.sources)
        if source in self._tables:
            return
        is_state = add.sources[0].kind == "state"
        # States are stored in float16, and rows of a snapshot in float32.
        dtype = torch.float16 if is_state else torch.float32
        with device:
            table = VectorTable(self.model.featurizer.table_rows[add.table], width, dtype)
        self._tables[source] = table
        # A table of rows is not saved, because every window begins by filling it from the teacher's snapshot.
        if is_state:
            columns = "+".join(self._columns(add.sources))
            self._saved[f"{_VECTORS}{teacher}.{columns}.table_{add.table}.vectors_RK"] = table

    def _add_offsets(self) -> None:
        offsets: dict[str, list[RowOffset]] = {}
        for teacher, add in self._additions:
            offset = ProjectedVectors(self._tables[teacher, add.sources], add.projection)
            offsets.setdefault(add.table, []).append(offset)
        for table, terms in offsets.items():
            self.model.featurizer.offsets[table] = terms[0] if len(terms) == 1 else OffsetSum(terms)

    def fed_tables(self) -> list[FedTable]:
        """Returns the tables of vectors, each with the columns of stored output that fill it."""
        longer = {key: table for key, table in self._served.items() if table.length > 1}
        fed = [FedTable(teacher, (f"{STATE}{entity}",), table) for (teacher, entity), table in longer.items()]
        projected = {(teacher, add.sources) for teacher, add in self._additions}
        for source, table in self._tables.items():
            teacher, sources = source
            fed.append(FedTable(teacher, self._columns(sources), table, source in projected))
        return fed

    def _columns(self, sources: Sequence[TeacherVectors]) -> tuple[str, ...]:
        columns: list[str] = []
        for source in sources:
            if source.kind == "state":
                columns.append(f"{STATE}{source.name}")
            else:
                columns += [f"{ROW}{feature}" for feature, table in self._features.items() if table == source.name]
        return tuple(columns)

    def parts_to_read(self) -> dict[str, set[str]]:
        """Names the parts of each teacher's snapshot that the next window takes, by teacher."""
        names: dict[str, set[str]] = {}
        for teacher, copy in self._copies:
            if copy.part not in self._copied:
                names.setdefault(teacher, set()).add(copy.part)
        for teacher, sources in self._tables:
            rows = {f"table/{source.name}" for source in sources if source.kind == "table_row"}
            if rows:
                names.setdefault(teacher, set()).update(rows)
        return names

    @torch.no_grad()
    def load(self, teacher: str, parts: ModelParts) -> None:
        """Takes the parts of a teacher's snapshot, at the start of a window."""
        written: dict[str, dict[str, Tensor]] = {}
        for name, copy in self._copies:
            if name == teacher and copy.part in parts and copy.part not in self._copied:
                # A slice as long as the tensor takes all of it; of a wider table it takes the leading columns.
                shapes = self._shapes[copy.part]
                tensors = parts[copy.part]
                written[copy.part] = {key: tensors[key][tuple(map(slice, shape))] for key, shape in shapes.items()}
                if copy.schedule == "once":
                    self._copied.add(copy.part)
        for (name, sources), table in self._tables.items():
            table_part = f"table/{sources[0].name}"
            if name == teacher and sources[0].kind == "table_row" and table_part in parts:
                table.vectors_RK.copy_(parts[table_part]["weight"])
        self._write(written)

    @torch.no_grad()
    def begin(self) -> None:
        """Begins a window, after its parts have been loaded: rows that are the teacher's alone become zeros."""
        for teacher, add in self._additions:
            if not add.keep_own_row and self._tables[teacher, add.sources].vectors_RK.any():
                shape = (self.model.featurizer.table_rows[add.table], self.model.featurizer.dim)
                self._write({f"table/{add.table}": {"weight": torch.zeros(shape)}})

    def _write(self, parts: ModelParts) -> None:
        """Overwrites the tensors of model parts, whole, in the placed model."""
        self._parallel_model.load_state_dict(part_entries(self.model, parts), strict=False)

    def keep_start(self) -> None:
        """Copies the vectors that the model has before its first window, for ``rewind``: those of another model."""
        for name, vectors in self._served_vectors().items():
            if vectors.any():
                self._start[name] = vectors.clone()

    def forget_start(self) -> None:
        """Drops the copies of ``keep_start``."""
        self._start = {}

    @torch.no_grad()
    def rewind(self) -> None:
        """Sets all vectors to those that the model had before its first window, which are zeros without copies."""
        for table in self._tables.values():
            table.vectors_RK.zero_()
        for name, vectors in self._served_vectors().items():
            if name in self._start:
                vectors.copy_(self._start[name])
            else:
                vectors.zero_()

    def _served_vectors(self) -> dict[str, Tensor]:
        """Returns the buffers of the tables that are served, by names whose entries grow with the table's rows."""
        vectors: dict[str, Tensor] = {}
        for (teacher, entity), table in self._served.items():
            vectors |= add_prefix(f"{STATE}{teacher}/{entity}.", dict(table.named_buffers()))
        return vectors

    def state(self) -> dict[str, Tensor]:
        """Returns the state that the next start needs."""
        state = {key: table.vectors_RK for key, table in self._saved.items()} | add_prefix(_START, self._start)
        once = self._copied_once()
        if once:
            state[_COPIED] = torch.tensor([name in self._copied for name in once])
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restores the result of ``state``.

        Raises:
            KeyError: it is the state of other transfers.
        """
        for key, table in self._saved.items():
            table.vectors_RK.copy_(state[key])
        # Copies, because a tensor of a file may be mapped to it.
        self._start = map_values(Tensor.clone, strip_prefix(_START, state))
        once = self._copied_once()
        self._copied = set()
        if once:
            self._copied = {name for name, copied in zip(once, state[_COPIED], strict=True) if copied}

    def _copied_once(self) -> list[str]:
        """Names the parts that are copied only once, in the order of their flags in the state."""
        return [copy.part for _, copy in self._copies if copy.schedule == "once"]
