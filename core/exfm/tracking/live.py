"""Tells trackers the events of a job while it runs, in a thread beside the training.

The thread reads what is committed, and nothing of the training: it changes no result, and a tracker that fails or hangs
holds nothing up. A window that a tracker has missed comes when the next is committed, or at the next start of the job.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any, Protocol, Self

from exfm.config.loading import Experiment
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.data_source import Window
from exfm.interfaces.events import (
    Event,
    Outcome,
    RunEnded,
    SnapshotHeld,
    SnapshotPublished,
    TrackedRun,
    WindowCommitted,
)
from exfm.interfaces.tracker import Tracker
from exfm.redaction import redact
from exfm.reporting.memory import resident_bytes
from exfm.tracking.delivery import Delivery
from exfm.tracking.run_reader import RunReader

END_S = 30.0
"""A job waits at its end so long for its trackers."""
STOP_S = 3.0
"""A job that an error or a signal ends waits so long: a signal has ten seconds."""
LAST_ATTEMPTS, LAST_PAUSE_S = 3, 0.5
"""At the end a tracker that fails is called again so many times, with pauses."""
_LIVE_WINDOWS = 1_000
"""Windows whose lag and memory are remembered for trackers that are behind."""

logger = logging.getLogger(__name__)


class WindowEnd(Protocol):
    """Describes the end of a window; see ``exfm.bookkeeping.progress.Progress``."""

    @property
    def window(self) -> Window:
        """The window."""

    @property
    def lag_s(self) -> float | None:
        """Time from the end of the window to the newest row of the stream."""


class FunctionTracker(Tracker):
    """Calls a function with each event."""

    name = "function"

    def __init__(self, function: Callable[[Event], None], run: TrackedRun) -> None:
        super().__init__(ComponentConfig(), run)
        self._function = function

    def window_committed(self, event: WindowCommitted) -> None:
        """Calls the function."""
        self._function(event)

    def snapshot_published(self, event: SnapshotPublished) -> None:
        """Calls the function."""
        self._function(event)

    def snapshot_held(self, event: SnapshotHeld) -> None:
        """Calls the function."""
        self._function(event)

    def run_ended(self, event: RunEnded) -> None:
        """Calls the function."""
        self._function(event)


class LiveTracking:
    """Tells trackers the events of a job while its block runs.

    Args:
        reader: reads the models of the job; None of a job without trackers.
        deliveries: to each tracker, by a name for messages.

    Attributes:
        failures: how often each tracker has failed.
    """

    def __init__(self, reader: RunReader | None, deliveries: dict[str, Delivery]) -> None:
        self._reader = reader
        self._deliveries = deliveries
        self.failures = dict.fromkeys(deliveries, 0)
        self._failing: dict[str, str] = {}
        self._live: dict[int, tuple[float | None, int]] = {}
        self._wake = threading.Event()
        self._outcome: Outcome = "ended"
        self._end: tuple[Outcome, str] | None = None
        # A daemon, because a tracker that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    def window(self, ended: WindowEnd) -> None:
        """Takes note of a window that has ended, whose commit may still be written."""
        if self._reader is None:
            return
        # Replaced and not changed, because the thread reads it meanwhile.
        live = {**self._live, ended.window.index: (ended.lag_s, resident_bytes())}
        while len(live) > _LIVE_WINDOWS:
            del live[next(iter(live))]
        self._live = live
        self._wake.set()

    def complete(self) -> None:
        """Takes note that results.json is written."""
        self._outcome = "complete"

    def __enter__(self) -> Self:
        if self._reader is not None:
            self._wake.set()  # for windows whose events were not delivered when the job was killed
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._reader is None:
            return
        outcome = self._outcome
        if error is not None:
            # A signal raises KeyboardInterrupt, which is no Exception.
            outcome = "failed" if isinstance(error, Exception) else "stopped"
        self._end = outcome, "" if error is None else redact(f"{type(error).__name__}: {error}")
        self._wake.set()
        self._thread.join(END_S if error is None else STOP_S)
        late = self._thread.is_alive()
        for name, failures in self.failures.items():
            if failures and name in self._failing:
                logger.warning(
                    "%s failed %d times, at last with %s; the next start of the job tells it the windows it lacks",
                    *(name, failures, self._failing[name]),
                )
        if late:
            logger.warning("trackers have not ended in time; the next start of the job tells them what they lack")

    def _run(self) -> None:
        ended = False
        while not ended:
            self._wake.wait()
            # Before reading, so that a window that ends meanwhile wakes it again.
            self._wake.clear()
            end = self._end  # read first: every window committed before it is delivered below
            for name, delivery in self._deliveries.items():
                taken = self._attempt(name, self._deliver, delivery)
                for _ in range(LAST_ATTEMPTS if end is not None else 0):
                    if not taken:
                        time.sleep(LAST_PAUSE_S)
                        taken = self._attempt(name, self._deliver, delivery)
                if end is not None:
                    self._attempt(name, self._tell_end, delivery, *end)
                    self._attempt(name, delivery.tracker.close)
            ended = end is not None

    def _deliver(self, delivery: Delivery) -> None:
        assert self._reader is not None
        delivery.deliver(self._reader, self._live)

    def _tell_end(self, delivery: Delivery, outcome: Outcome, error: str) -> None:
        assert self._reader is not None
        figures = self._reader.summaries() if outcome == "complete" else {}
        delivery.end(RunEnded(tuple(self._reader.models()), outcome, error, figures))

    def _attempt(self, name: str, call: Callable[..., None], *arguments: Any) -> bool:
        """Calls a tracker; counts a failure, and says it where it differs from that before. Returns False then."""
        try:
            call(*arguments)
        except Exception as error:
            self.failures[name] += 1
            reason = redact(f"{type(error).__name__}: {' '.join(str(error).split())}")
            if self._failing.get(name) != reason:
                logger.warning("%s: %s; the run goes on, and it is told again after the next window", name, reason)
            self._failing[name] = reason
            return False
        if self._failing.pop(name, ""):
            logger.warning("%s: it takes events again, after %d failures", name, self.failures[name])
        return True


def open_tracking(
    experiment: Experiment, models: Collection[str], is_rank_zero: bool, on_event: Callable[[Event], None] | None = None
) -> LiveTracking:
    """Builds the trackers of a job, whose run's folder has its config.yaml.

    Args:
        models: names of the models that the job trains.
        is_rank_zero: no other process tells anything.
        on_event: called with the events of this job, in the thread of the trackers.

    Raises:
        ConfigError: a tracker cannot be built.
    """
    specs = experiment.config.trackers
    if not is_rank_zero or not (specs or on_event):
        return LiveTracking(None, {})
    reader = RunReader(experiment.run_dir, models)
    deliveries: dict[str, Delivery] = {}
    for number, spec in enumerate(specs):
        key = f"trackers.{number} ({spec.name})"
        deliveries[key] = Delivery.build(spec, reader.run, key)
    if on_event is not None:
        # A function hears of this job's windows, while trackers also get those that they have missed.
        start = {model: reader.head(model) for model in models}
        deliveries["on_event"] = Delivery(FunctionTracker(on_event, reader.run), "on_event", start)
    return LiveTracking(reader, deliveries)
