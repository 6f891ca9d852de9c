"""GAUC against a loop over groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from exfm.evaluation.grouped import GroupedAuc, GroupedRows, grouped_auc, score_runs, whole_groups
from exfm.splitmix import splitmix64

rows_lists = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), st.integers(0, 5), st.booleans()), max_size=60
)


def rows_of(rows: list[tuple[int, int, bool]]) -> GroupedRows:
    return GroupedRows(
        np.array([group for group, _, _ in rows], np.int64),
        np.array([score / 5 for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], bool),
    )


def by_loop(rows: GroupedRows) -> float | None:
    total, weight = 0.0, 0
    for group in set(rows.group.tolist()):
        here = rows.group == group
        if 0 < rows.label[here].sum() < here.sum():
            total += roc_auc_score(rows.label[here], rows.probability[here]) * here.sum()
            weight += int(here.sum())
    return total / weight if weight else None


@given(rows_lists)
def test_equals_a_loop_over_the_groups(raw: list[tuple[int, int, bool]]) -> None:
    rows = rows_of(raw)
    assert grouped_auc(score_runs(rows)).gauc == pytest.approx(by_loop(rows), abs=1e-12)


@given(rows_lists, st.integers(1, 70), st.integers(1, 20))
def test_passes_and_chunks_change_nothing(raw: list[tuple[int, int, bool]], per_pass: int, chunk: int) -> None:
    rows = rows_of(raw)
    reads = 0

    def read() -> Iterator[tuple[str, GroupedRows]]:
        nonlocal reads
        reads += 1
        for start in range(0, len(raw), chunk):
            piece = slice(start, start + chunk)
            yield "click", GroupedRows(rows.group[piece], rows.probability[piece], rows.label[piece])
            yield "none_positive", GroupedRows(rows.group[:1], rows.probability[:1], np.zeros(1, bool))

    totals = {"click": GroupedAuc(), "none_positive": GroupedAuc()}
    for task, groups in whole_groups(read, rows=len(raw), rows_per_pass=per_pass):
        totals[task] += grouped_auc(score_runs(groups))
    assert reads == max(1, -(-len(raw) // per_pass))
    assert totals["click"].gauc == pytest.approx(grouped_auc(score_runs(rows)).gauc, abs=1e-12)
    assert totals["none_positive"].gauc is None


def test_groups_weigh_by_their_examples() -> None:
    right = [(1, 0, False), (1, 5, True)]
    wrong = [(2, 5, False), (2, 0, True), (2, 0, True), (2, 0, True)]
    one_class = [(3, 0, True)] * 10
    assert grouped_auc(score_runs(rows_of(right + wrong + one_class))) == GroupedAuc(2.0, 6)


def test_negative_zero_ties_with_zero() -> None:
    rows = GroupedRows(np.zeros(2, np.int64), np.array([-0.0, 0.0], np.float32), np.array([False, True]))
    assert grouped_auc(score_runs(rows)).gauc == 0.5


def test_rows_of_a_pass_are_a_fair_share_even_for_regular_ids() -> None:
    """Ids that are all multiples of the number of passes must not meet in a single pass."""
    shares = np.bincount((splitmix64(np.arange(0, 64_000, 64)) % np.uint64(8)).astype(int), minlength=8)
    assert shares.min() > 80
    assert shares.max() < 170


def test_mixing_keeps_different_groups_apart() -> None:
    assert np.unique(splitmix64(np.arange(-50_000, 50_000))).size == 100_000
