"""Leaves out rows whose example id came before in the order of the stream.

Legend: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from exfm.data.positions import POSITION, Positions, file_and_row, has_ties, sort_keys
from exfm.data.repeats import REPEATED, WindowIds
from exfm.data.skips import Skips
from exfm.data.time_order import row_keys
from exfm.interfaces.schema import FeatureSchema


def leave_out_repeats(
    batches: Iterable[pa.RecordBatch], schema: FeatureSchema, ids: WindowIds, positions: Positions, skips: Skips
) -> Iterator[pa.RecordBatch]:
    """Yields the first row of each example id, and counts the others.

    Rows of the same time and id are ordered by file and row, so that the row that stays does not depend on the order in
    which files are read.

    Args:
        batches: in the order of time and example id, with their positions, and with all rows of a time and id together.
        ids: the ids that came before.
        positions: has numbered the positions.
        skips: counts the rows that are left out.
    """
    for rows in batches:
        time_B, id_B = row_keys(rows, schema)
        position_B = rows.column(POSITION).to_numpy()
        rows = rows.drop_columns([POSITION])
        if has_ties(time_B, id_B):
            order = sort_keys(time_B, id_B, position_B, positions.files)
            rows, id_B, position_B = rows.take(pa.array(order)), id_B[order], position_B[order]
        repeated_B = ids.repeated(id_B.view(np.uint64), np.ones(id_B.size, bool))
        if repeated_B.any():
            where = file_and_row(int(position_B[repeated_B.argmax()]), positions.files)
            skips.add(schema.example_id, REPEATED, int(repeated_B.sum()), f"{where}: {schema.example_id}: {REPEATED}")
            skips.read(0)  # the rows are counted already; too many may be left out now
            rows = rows.filter(pa.array(~repeated_B))
        yield rows
