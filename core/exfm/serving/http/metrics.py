"""Counts the requests and rows of a service, for Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from exfm.serving.http.prediction_log import PredictionLog
from exfm.serving.http.refusal import RefusedError
from exfm.serving.http.service import Service

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)


class Metrics:
    """Counts requests and rows, and tells of the snapshot that is served."""

    media_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        # A separate registry, because that of the process refuses a second service.
        self._registry = CollectorRegistry()
        self._requests = Counter("exfm_requests", "Requests by status.", ["status"], registry=self._registry)
        self._seconds = Histogram(
            "exfm_request_seconds", "Time of a request.", buckets=_SECONDS, registry=self._registry
        )
        self._rows = Histogram(
            "exfm_batch_rows", "Rows that were predicted together.", buckets=_ROWS, registry=self._registry
        )
        self._running = Gauge("exfm_requests_running", "Requests that are being answered.", registry=self._registry)
        self._at_once = 0

    def watch(self, service: Service, log: PredictionLog | None) -> None:
        """Adds metrics that are read from a service, and from its log, whenever Prometheus asks."""

        def gauge(name: str, words: str) -> Gauge:
            return Gauge(name, words, registry=self._registry)

        gauge("exfm_snapshot", "The snapshot that is served.").set_function(lambda: service.description.snapshot)
        gauge("exfm_snapshot_age_seconds", "Age of the newest example that it may have seen.").set_function(
            lambda: time.time() - service.description.watermark.timestamp()
        )
        gauge("exfm_refreshes", "Times that new weights were taken over.").set_function(lambda: service.refreshed)
        gauge("exfm_refresh_failing", "1 while new weights cannot be read.").set_function(
            lambda: bool(service.refresh_error)
        )
        if log is not None:
            gauge("exfm_log_rows", "Rows in complete files of the log.").set_function(lambda: log.written)
            gauge("exfm_log_rows_left_out", "Rows that the log lacks.").set_function(lambda: log.left_out)

    def predicted(self, rows: int) -> None:
        """Counts rows that are predicted together."""
        self._rows.observe(rows)

    def answered(self, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(status).inc()
        self._seconds.observe(seconds)

    @contextmanager
    def running(self, most: int) -> Iterator[None]:
        """Counts a request while it runs.

        Raises:
            RefusedError: so many run already.
        """
        if self._at_once >= most:
            raise RefusedError(503, f"{most} requests are being answered; try again")
        self._at_once += 1
        self._running.set(self._at_once)
        try:
            yield
        finally:
            self._at_once -= 1
            self._running.set(self._at_once)

    def text(self) -> bytes:
        """Returns the metrics in Prometheus' text format."""
        return generate_latest(self._registry)
