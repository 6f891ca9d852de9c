"""Sums up the metrics that the experiment names, over windows.

Legend: E examples, S sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from exfm.evaluation.predictions import TaskRows
from exfm.interfaces.metric import Metric, MetricRows

MetricSums = dict[str, npt.NDArray[np.float64]]
"""Sums (S,) by the title of a metric."""


def metric_sums(metrics: Sequence[Metric], rows: TaskRows) -> MetricSums:
    """Sums the metrics for a kind of label over rows; empty where there are no rows, or none is for the kind.

    Raises:
        ValueError: the sums of a metric are not finite, so that they would spoil those of all windows.
    """
    fitting = [metric for metric in metrics if rows.kind in metric.label_kinds]
    if not fitting or not rows.label.size:
        return {}
    weight_E = np.ones(rows.label.size) if rows.weight is None else rows.weight.astype(np.float64)
    examples = MetricRows(rows.probability.astype(np.float64), rows.label.astype(np.float64), weight_E, rows.group)
    sums: MetricSums = {}
    for metric in fitting:
        sums[metric.title] = np.asarray(metric.sums(examples), np.float64)
        if not np.isfinite(sums[metric.title]).all():
            raise ValueError(f"evaluation.metrics: the sums of {metric.title} are not finite")
    return sums


def add_sums(total: MetricSums, more: MetricSums) -> None:
    """Adds sums to those of other rows, in place."""
    for title, sums_S in more.items():
        total[title] = total[title] + sums_S if title in total else sums_S


def metric_figures(metrics: Sequence[Metric], sums: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float | None]:
    """Computes the figures of sums, by the metric's title."""
    return {metric.title: metric.value(sums[metric.title]) for metric in metrics if metric.title in sums}
