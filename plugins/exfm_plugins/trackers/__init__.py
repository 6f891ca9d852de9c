"""Trackers: systems that keep or show the figures of committed windows."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_trackers() -> list[exfm.LazyComponent]:
    """Offers the built-in trackers."""
    return [
        exfm.LazyComponent("mlflow", "exfm_plugins.trackers.mlflow.tracker:MLflowTracker"),
        exfm.LazyComponent("opentelemetry", "exfm_plugins.trackers.opentelemetry.tracker:OpenTelemetryTracker"),
        exfm.LazyComponent("prometheus", "exfm_plugins.trackers.prometheus.tracker:PrometheusTracker"),
        exfm.LazyComponent("tensorboard", "exfm_plugins.trackers.tensorboard.tracker:TensorBoardTracker"),
        exfm.LazyComponent("wandb", "exfm_plugins.trackers.wandb.tracker:WandbTracker"),
    ]
