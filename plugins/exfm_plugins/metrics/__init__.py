"""Metrics: further figures of the predictions of a task."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_metrics() -> list[exfm.LazyComponent]:
    """Offers the built-in metrics."""
    return [
        exfm.LazyComponent("accuracy", "exfm_plugins.metrics.accuracy.metric:Accuracy"),
        exfm.LazyComponent("concordance", "exfm_plugins.metrics.concordance.metric:Concordance"),
        exfm.LazyComponent("mae", "exfm_plugins.metrics.mae.metric:MAE"),
        exfm.LazyComponent("rmse", "exfm_plugins.metrics.rmse.metric:RMSE"),
        exfm.LazyComponent("top_k", "exfm_plugins.metrics.top_k.metric:TopK"),
    ]
