"""Tracker `prometheus`: a page of the job's present figures, which Prometheus reads."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

import exfm
from exfm.events import TrackedRun
from exfm_plugins.trackers.gauges import COUNTERS, GAUGES, GaugeTracker, Measure

_DIMENSIONS = {
    "exfm_ne": "task",
    "exfm_log_loss": "task",
    "exfm_calibration": "task",
    "exfm_ne_gain_percent": "task",
    "exfm_supervision_hit_rate": "teacher",
    "exfm_supervision_age_seconds": "teacher",
}
"""The label of a gauge beside run and model."""


class PrometheusTracker(GaugeTracker):
    """Answers ``http://HOST:PORT/metrics`` while the job runs; needs ``exfm[prometheus]``.

    Lag, rows per second, memory, NE, calibration, age and hit rate of supervision, and held snapshots, labelled by run,
    model, and task or teacher. A job on the same machine needs another port.

    Example::

        trackers: [{name: prometheus, port: 9095}]
    """

    name: ClassVar[str] = "prometheus"
    config: Config

    class Config(exfm.ComponentConfig):
        """Fields of `prometheus`."""

        port: int = Field(9095, ge=0, le=65_535, description="The port; 0: any that is free.")
        host: str = Field("127.0.0.1", description="The address; 0.0.0.0 for a Prometheus on another machine.")

    def __init__(self, config: Config, run: TrackedRun) -> None:
        super().__init__(config, run)
        try:
            import prometheus_client
        except ImportError as error:
            raise ValueError(f"prometheus-client is not installed: pip install 'exfm[prometheus]' ({error})") from error
        self._library: Any = prometheus_client
        # Not the library's own registry, which other code of the process fills.
        self._registry = prometheus_client.CollectorRegistry()
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}
        for name, text in GAUGES.items():
            labels = ["run", "model", *filter(None, [_DIMENSIONS.get(name)])]
            self._gauges[name] = prometheus_client.Gauge(name, text, labels, registry=self._registry)
        for name, text in COUNTERS.items():
            self._counters[name] = prometheus_client.Counter(name, text, ["run", "model"], registry=self._registry)
        self._server: tuple[Any, Any] | None = None
        self.port = config.port

    def close(self) -> None:
        """Ends the server."""
        if self._server is not None:
            server, thread = self._server
            server.shutdown()
            server.server_close()
            thread.join()
            self._server = None

    def _open(self) -> None:
        """Begins to answer."""
        if self._server is None:
            self._server = self._library.start_http_server(
                self.config.port, addr=self.config.host, registry=self._registry
            )
            self.port = int(self._server[0].server_port)

    def _set(self, measure: Measure) -> None:
        self._gauges[measure.gauge].labels(run=self.run.name, **measure.labels).set(measure.value)

    def _count(self, counter: str, model: str, amount: float) -> None:
        self._counters[counter].labels(run=self.run.name, model=model).inc(amount)
