"""Finds columns that know a label: those that rank it nearly perfectly alone, or are constant given its value."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from exfm.inspection.columns import Column

_AUC = 0.99
_LEAST_ROWS = 50
"""Rows of either label value that a verdict needs."""
_CHANCE = 1e-6
"""A column that is constant given the label by chance with less than this probability is reported."""


def leak(column: Column, label: Column) -> str:
    """Returns how a scalar column gives a label away; empty where it does not.

    Args:
        column: a candidate feature.
        label: a column of 0, 1 and nulls.
    """
    truth = label.numbers
    labelled_B = ~np.isnan(truth)
    codes, positive = column.codes[labelled_B], truth[labelled_B] == 1
    if min(positive.sum(), (~positive).sum()) < _LEAST_ROWS:
        return ""
    for value, rows in ((1, positive), (0, ~positive)):
        if _is_constant_by_law(codes, rows):
            return f"where {label.name} is {value} all of its values are equal, and elsewhere not"
    auc = _auc_alone(column, labelled_B, codes, positive)
    return f"alone it has an AUC of {auc:.4f} for {label.name}" if auc > _AUC else ""


def _is_constant_by_law(codes: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]) -> bool:
    inside = codes[rows]
    if (inside != inside[0]).any():
        return False
    share = float((codes == inside[0]).mean())
    # The chance that as many rows, drawn from all, have the commonest value.
    return share < 1 and inside.size * np.log(share) < np.log(_CHANCE)


def _auc_alone(
    column: Column, labelled_B: npt.NDArray[np.bool_], codes: npt.NDArray[np.int64], positive: npt.NDArray[np.bool_]
) -> float:
    """Returns the AUC of a column's numbers, in either direction, or of the label's rate among rows of equal ids."""
    if column.kind == "number" or (column.kind == "integer" and column.distinct > codes.size / 4):
        numbers = column.numbers[labelled_B]
        if np.isnan(numbers).all():
            return 0.5
        auc = _auc(np.nan_to_num(numbers, nan=float(np.nanmin(numbers)) - 1), positive)
        return max(auc, 1 - auc)
    shifted = codes + 1  # -1 is null
    # Rates from half of the rows, and the AUC on the others, because a row's own label would rank rare ids perfectly.
    # A random half, because rows may alternate.
    counted = np.random.default_rng(0).random(codes.size) < 0.5
    size = int(shifted.max()) + 1
    rows_of_id = np.bincount(shifted[counted], minlength=size)
    positives_of_id = np.bincount(shifted[counted], weights=positive[counted], minlength=size)
    rates = (positives_of_id + positive.mean()) / (rows_of_id + 1)
    return _auc(rates[shifted[~counted]], positive[~counted])


def _auc(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Returns the area under the ROC curve; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last_rank = np.cumsum(counts)
    mean_rank = last_rank - (counts - 1) / 2
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return 0.5
    rank_sum = float(mean_rank[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)
