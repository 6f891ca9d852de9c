"""Grows tables that have more rows in the schema than in a snapshot: learned rows stay, new rows are added.

Legend: N rows of a table, D its width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise

import torch
from torch import Tensor

from exfm.errors import ConfigError
from exfm.interfaces.local_shards import StateTensor, local_boxes, whole_tensors
from exfm.interfaces.schema import FeatureSchema, rows_may_become
from exfm.modeling.parts import table_of

_TABLE, _STATE = "table_", "state_"
_DRAWN = 65_536
"""Rows that are drawn together, so that a whole table is never in memory."""


class Growth:
    """Grows the saved tensors of tables to the number of rows that the schema has now.

    New rows of a table of ids that are rows (``ids: row``) start as a new table's: drawn anew, with no state of the
    optimizer. A table of hashed ids grows by a whole factor, so that an id that hashed to row r of N now hashes to
    any of r, r + N, r + 2 N, ...; each of these starts as row r was, with its optimizer state, and no prediction
    changes.

    Args:
        schema: the stream's schema.
        init_std: the standard deviation of a new row.
        seed: seeds the generator of new rows, together with the table's name.
    """

    def __init__(self, schema: FeatureSchema, init_std: float, seed: int) -> None:
        self._rows = schema.tables()
        self._ids = schema.table_ids()
        self._entities = schema.entity_tables()
        self._half_width = init_std * math.sqrt(3.0)
        self._seed = seed

    def grow(self, state: Mapping[str, StateTensor]) -> dict[str, StateTensor]:
        """Returns a saved state whose tables have the schema's present number of rows.

        Args:
            state: weights, or the state of optimizers or strategies, whole but for tables that were read into the
                model. An entry has a table's rows where two successive names between its dots are ``table_NAME`` and
                ``weight``, ``state`` or ``vectors_RK``, or as a teacher input's stored vectors.

        Raises:
            ConfigError: a table has fewer rows than before, or more hashed ones that are no multiple.
        """
        return {name: self._grown(name, value) for name, value in state.items()}

    def grow_whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns whole tensors as ``grow`` does."""
        return whole_tensors(self.grow(state))

    def repeats(self, name: str, before: int, rows: int) -> int:
        """Returns how often the rows of a saved entry are repeated in a table of more rows; 0 if it is no table's.

        Raises:
            ConfigError: a table has fewer rows than before, or more hashed ones that are no multiple.
        """
        table = self._table(name)
        if not table or rows != self._rows.get(table, 0):
            return 0
        if refused := rows_may_become(before, rows, self._ids[table]):
            raise ConfigError(f"table {table!r}: {refused}")
        return rows // before if self._ids[table] == "hash" else 1

    def fill(self, name: str, before: int, state: StateTensor) -> None:
        """Starts the rows of a table from ``before`` on, which are not repetitions, in this process's boxes."""
        if self._ids[self._table(name)] == "hash":
            return
        boxes = local_boxes(state)
        for first, row_ND in self._new_rows(name, before, state):
            for offsets, box in boxes.items():
                # Rows that are both among these and in the box.
                start, end = max(first, offsets[0]), min(first + row_ND.shape[0], offsets[0] + box.shape[0])
                if start < end:
                    values = row_ND[start - first : end - first]
                    if box.dim() > 1:
                        values = values[:, offsets[1] : offsets[1] + box.shape[1]]
                    box[start - offsets[0] : end - offsets[0]].copy_(values)

    def _grown(self, name: str, value: StateTensor) -> StateTensor:
        table = self._table(name)
        rows = self._rows.get(table, 0)
        if not table or value.shape[0] == rows:
            return value
        assert isinstance(value, Tensor)
        repeats = self.repeats(name, value.shape[0], rows)
        if self._ids[table] == "hash":
            return value.repeat(repeats, *(1 for _ in value.shape[1:]))
        grown = value.new_empty(rows, *value.shape[1:])
        grown[: value.shape[0]] = value
        self.fill(name, value.shape[0], grown)
        return grown

    def _new_rows(self, name: str, before: int, state: StateTensor) -> Iterator[tuple[int, Tensor]]:
        """Yields the new rows of a table, whole and some at a time, each time with the index of the first."""
        table = self._table(name)
        # A hash and not the global generator: every process draws the same rows, in whatever order tables come.
        digest = hashlib.sha256(f"{self._seed}/{table}/{before}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        for first in range(before, state.shape[0], _DRAWN):
            new = torch.zeros(min(_DRAWN, state.shape[0] - first), *state.shape[1:], dtype=state.dtype)
            # Weights are drawn; optimizer states and stored vectors of new rows stay zero.
            if table_of(name):
                new.uniform_(-self._half_width, self._half_width, generator=generator)
            yield first, new

    def _table(self, name: str) -> str:
        """Returns the table whose rows an entry has; an empty string where it has no table's rows."""
        for owner, kind in pairwise(name.split(".")):
            if owner.startswith(_TABLE) and kind in ("weight", "state", "vectors_RK"):
                return owner.removeprefix(_TABLE)
            if owner.startswith(_STATE) and kind in ("vectors_RK", "count_R"):
                return self._entities[owner.rpartition("/")[2]]
        return ""


class RenamedGrowth:
    """Grows the tables of a model that has other names for them.

    Args:
        growth: of this model.
        names: the name of a tensor here, by its name there.
    """

    def __init__(self, growth: Growth, names: Mapping[str, str]) -> None:
        self._growth, self._names = growth, names

    def repeats(self, name: str, before: int, rows: int) -> int:
        """Returns how often saved rows are repeated, see ``Growth.repeats``."""
        return self._growth.repeats(self._names[name], before, rows)

    def fill(self, name: str, before: int, state: StateTensor) -> None:
        """Starts new rows, see ``Growth.fill``."""
        self._growth.fill(self._names[name], before, state)
