"""Tracker `opentelemetry`: the job's present figures as metrics of OpenTelemetry."""

from __future__ import annotations

import os
import sys
from functools import partial
from importlib.metadata import entry_points
from typing import Any, ClassVar

import exfm
from exfm.events import TrackedRun
from exfm_plugins.trackers.gauges import COUNTERS, GAUGES, GaugeTracker, Measure

_EXPORTERS = "OTEL_METRICS_EXPORTER"


class OpenTelemetryTracker(GaugeTracker):
    """Sends the gauges and counters of `prometheus` through OpenTelemetry's SDK; needs ``exfm[opentelemetry]``.

    Environment variables of OpenTelemetry say where to: ``OTEL_METRICS_EXPORTER`` names an installed exporter, ``otlp``
    by default (``pip install opentelemetry-exporter-otlp``) or ``console``; ``OTEL_EXPORTER_OTLP_ENDPOINT`` is its
    address, ``OTEL_EXPORTER_OTLP_HEADERS`` its secrets, ``OTEL_METRIC_EXPORT_INTERVAL`` how often it sends, in
    milliseconds. Attributes are ``run``, ``model``, and ``task`` or ``teacher``.

    Example::

        trackers: [{name: opentelemetry}]
    """

    name: ClassVar[str] = "opentelemetry"

    def __init__(self, config: exfm.ComponentConfig, run: TrackedRun) -> None:
        super().__init__(config, run)
        try:
            from opentelemetry.sdk.metrics import MeterProvider
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        except ImportError as error:
            raise ValueError(
                f"opentelemetry-sdk is not installed: pip install 'exfm[opentelemetry]' ({error})"
            ) from error
        self._exporter_class = _exporter_class()
        self._reader_class: Any = PeriodicExportingMetricReader
        self._provider_class: Any = MeterProvider
        self._provider: Any = None
        self._gauges: dict[str, Any] = {}
        self._counters: dict[str, Any] = {}

    def close(self) -> None:
        """Exports what has not been exported yet."""
        if self._provider is not None:
            self._provider.shutdown()
            self._provider = None

    def _open(self) -> None:
        """Begins to export; the reader and the exporter read their environment variables."""
        if self._provider is not None:
            return
        self._provider = self._provider_class(metric_readers=[self._reader_class(self._exporter_class())])
        meter = self._provider.get_meter("exfm", exfm.__version__)
        for name, text in GAUGES.items():
            self._gauges[name] = meter.create_gauge(name, description=text)
        for name, text in COUNTERS.items():
            self._counters[name] = meter.create_counter(name, description=text)

    def _set(self, measure: Measure) -> None:
        self._gauges[measure.gauge].set(measure.value, {"run": self.run.name, **measure.labels})

    def _count(self, counter: str, model: str, amount: float) -> None:
        self._counters[counter].add(amount, {"run": self.run.name, "model": model})


def _exporter_class() -> Any:
    """Returns the class of the exporter that the environment names.

    Raises:
        ValueError: it is not installed.
    """
    name = os.environ.get(_EXPORTERS, "otlp")
    names = [name]
    if name == "otlp":
        protocol = os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "")
        names += [f"otlp_proto_{kind}" for kind in ("grpc", "http") if protocol in ("", kind, f"{kind}/protobuf")]
    # The group in which distributions offer exporters, by the names that the environment variable takes.
    offered = {entry.name: entry for entry in entry_points(group="opentelemetry_metrics_exporter")}
    for candidate in names:
        if candidate in offered:
            exporter = offered[candidate].load()
            # stdout belongs to the command.
            return partial(exporter, out=sys.stderr) if candidate == "console" else exporter
    installed = ", ".join(sorted(offered)) or "none"
    hint = "; pip install opentelemetry-exporter-otlp" if name == "otlp" else ""
    raise ValueError(f"{_EXPORTERS}: no exporter {name!r} is installed (installed: {installed}){hint}")
