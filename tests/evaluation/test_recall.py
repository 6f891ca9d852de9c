"""Recall inside groups against a loop that orders ties in every way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.evaluation.grouped import GroupedRows, score_runs, whole_groups
from exfm.evaluation.recall import GroupedRecall, grouped_recall

rows_lists = st.lists(
    st.tuples(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=18
)


def rows_of(rows: list[tuple[int, int, bool]]) -> GroupedRows:
    return GroupedRows(
        np.array([group for group, _, _ in rows], np.int64),
        np.array([score / 3 for _, score, _ in rows], np.float32),
        np.array([label for _, _, label in rows], bool),
    )


def by_loop(rows: list[tuple[int, int, bool]], k: int) -> GroupedRecall:
    """The definition, row by row: a row that ties at rank k is in with the chance that a shuffle puts it there."""
    recalls, examples = [], 0
    for group in {group for group, _, _ in rows}:
        here = [(score, label) for other, score, label in rows if other == group]
        positives = sum(label for _, label in here)
        if not positives or len(here) <= k:
            continue
        hits = 0.0
        for score, label in here:
            above = sum(other > score for other, _ in here)
            ties = sum(other == score for other, _ in here)
            hits += label * min(max(k - above, 0) / ties, 1.0)
        recalls.append(hits / positives)
        examples += len(here)
    return GroupedRecall(sum(recalls), len(recalls), examples)


@given(rows_lists, st.integers(1, 6))
def test_equals_a_loop_over_the_groups(raw: list[tuple[int, int, bool]], k: int) -> None:
    recall, expected = grouped_recall(score_runs(rows_of(raw)), k), by_loop(raw, k)
    assert (recall.groups, recall.examples) == (expected.groups, expected.examples)
    assert recall.recall_sum == pytest.approx(expected.recall_sum, abs=1e-12)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=2, max_size=6), st.integers(1, 5))
def test_a_tie_counts_its_average_over_all_orders(raw: list[tuple[int, bool]], k: int) -> None:
    recall = grouped_recall(score_runs(rows_of([(7, score, label) for score, label in raw])), k)
    positives = sum(label for _, label in raw)
    if not positives or len(raw) <= k:
        assert recall == GroupedRecall()
        return
    shuffles = [sorted(order, key=lambda row: -row[0])[:k] for order in permutations(raw)]
    assert recall.recall == pytest.approx(fmean(sum(label for _, label in top) for top in shuffles) / positives)


@given(rows_lists, st.integers(1, 20), st.integers(1, 7))
def test_passes_and_chunks_change_nothing(raw: list[tuple[int, int, bool]], per_pass: int, chunk: int) -> None:
    rows = rows_of(raw)

    def read() -> Iterator[tuple[str, GroupedRows]]:
        for start in range(0, len(raw), chunk):
            piece = slice(start, start + chunk)
            yield "click", GroupedRows(rows.group[piece], rows.probability[piece], rows.label[piece])

    total = GroupedRecall()
    for _, groups in whole_groups(read, rows=len(raw), rows_per_pass=per_pass):
        total += grouped_recall(score_runs(groups), 2)
    expected = grouped_recall(score_runs(rows), 2)
    assert (total.groups, total.examples) == (expected.groups, expected.examples)
    assert total.recall_sum == pytest.approx(expected.recall_sum, abs=1e-12)


def test_groups_that_any_ranking_would_serve_do_not_count() -> None:
    short = [(1, 0, True), (1, 1, False)]
    no_positive = [(2, score, False) for score in range(4)]
    half_ranked_first = [(3, 3, True), (3, 2, False), (3, 1, False), (3, 0, True)]
    assert grouped_recall(score_runs(rows_of(short + no_positive + half_ranked_first)), 2) == GroupedRecall(0.5, 1, 4)
    assert grouped_recall(score_runs(rows_of(short + no_positive)), 2).recall is None
