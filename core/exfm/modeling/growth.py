"""Grows tables that have more rows in the schema than in a snapshot: learned rows stay, new rows are added.

Legend: N rows of a table, D its width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from exfm.errors import ConfigError
from exfm.interfaces.schema import FeatureSchema, rows_may_become
from exfm.modeling.parts import table_of

_TABLE, _STATE = "table_", "state_"


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

    def grow(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns a saved state whose tables have the schema's present number of rows.

        Args:
            state: weights, or the state of optimizers or strategies. An entry has a table's rows where two successive
                names between its dots are ``table_NAME`` and ``weight``, ``state`` or ``vectors_RK``, or as a teacher
                input's stored vectors.

        Raises:
            ConfigError: a table has fewer rows than before, or more hashed ones that are no multiple.
        """
        return {name: self._grown(name, value) for name, value in state.items()}

    def _grown(self, name: str, value: Tensor) -> Tensor:
        table = self._table(name)
        rows = self._rows.get(table, 0)
        if not table or value.shape[0] == rows:
            return value
        before = value.shape[0]
        if refused := rows_may_become(before, rows, self._ids[table]):
            raise ConfigError(f"table {table!r}: {refused}")
        if self._ids[table] == "hash":
            return value.repeat(rows // before, *(1 for _ in value.shape[1:]))
        new = value.new_zeros(rows - before, *value.shape[1:])
        # Weights are drawn; optimizer states and stored vectors of new rows stay zero.
        if table_of(name):
            # A hash and not the global generator: every process draws the same rows, in whatever order tables come.
            digest = hashlib.sha256(f"{self._seed}/{table}/{before}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            new.uniform_(-self._half_width, self._half_width, generator=generator)
        return torch.cat([value, new])

    def _table(self, name: str) -> str:
        """Returns the table whose rows an entry has; an empty string where it has no table's rows."""
        for owner, kind in pairwise(name.split(".")):
            if owner.startswith(_TABLE) and kind in ("weight", "state", "vectors_RK"):
                return owner.removeprefix(_TABLE)
            if owner.startswith(_STATE) and kind in ("vectors_RK", "count_R"):
                return self._entities[owner.rpartition("/")[2]]
        return ""
