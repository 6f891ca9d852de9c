"""Determines until when logs are complete: how far the stream goes, and which labels can be known.

A log is complete before the time of its newest event, less its ``lateness``.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from exfm.components import NotYetError
from exfm.sources import StreamPart, microseconds
from exfm_plugins.sources.joined.config import JoinedConfig
from exfm_plugins.sources.joined.events import EventLog

logger = logging.getLogger(__name__)

_1970 = datetime(1970, 1, 1, tzinfo=UTC)
# Logs that the impressions of a stream wait for, so that each is named in a single warning.
_WAITED_FOR: set[tuple[str, str]] = set()


@dataclass(frozen=True)
class Completeness:
    """Describes until when the stream and its labels are complete.

    Attributes:
        end_us: impressions before this time have all events of their histories, and their labels when they are due.
        labels_us: by label, the time before which all its events are there.
    """

    end_us: int
    labels_us: Mapping[str, int]


class LogTimes:
    """Determines the completeness of the logs of a source.

    Args:
        logs: by name.
        impressions: the impressions as a log; labels of which several impressions compete for events need them.
    """

    def __init__(self, config: JoinedConfig, logs: Mapping[str, EventLog], impressions: EventLog) -> None:
        self._config = config
        self._logs = logs
        self._impressions = impressions
        until = config.complete_until
        self._until_us = None if until is None else (until - _1970) // timedelta(microseconds=1)

    def look(self) -> None:
        """Lists the files of all logs."""
        for log in self._logs.values():
            log.look()
        if self._competing():
            self._impressions.look()

    def completeness(self, span_end_us: int) -> Completeness:
        """Determines the completeness of the stream, as of the last look.

        Args:
            span_end_us: the end of the impressions.

        Raises:
            NotYetError: a log has no event yet.
        """
        end_us, waits = span_end_us, ""
        labels_us: dict[str, int] = {}
        competing = self._competing()
        for name, join in self._config.labels_from.items():
            complete_us = self._complete_us(join.log)
            labels_us[name] = min(complete_us, self._impressions_us(span_end_us)) if name in competing else complete_us
            # The labels that are due in a window are those of impressions a delay before its end.
            slack_us = self._delay_us(name) - microseconds(join.within)
            if complete_us + slack_us < end_us:
                end_us, waits = complete_us + slack_us, join.log
        for history in self._config.histories.values():
            complete_us = self._complete_us(history.log)
            if complete_us < end_us:
                end_us, waits = complete_us, history.log
        if waits:
            self._warn(waits, end_us)
        return Completeness(end_us, labels_us)

    def version(self, stream_part: StreamPart, completeness: Completeness) -> str:
        """Returns the version of a part with that of its labels, which changes when labels become known or change."""
        digest = hashlib.sha256(stream_part.version.encode())
        competing = self._competing()
        for name, join in self._config.labels_from.items():
            within_us = microseconds(join.within)
            last_us = stream_part.last_us + within_us
            complete_us = completeness.labels_us[name]
            if complete_us > last_us:
                digest.update(self._logs[join.log].version(stream_part.first_us, last_us).encode())
                if name in competing:
                    digest.update(self._impressions.version(stream_part.first_us, last_us).encode())
            else:
                # In whole windows of the label, so that a log that grows does not change its parts at each look.
                digest.update(f"{max(0, complete_us - stream_part.first_us) // max(1, within_us)}".encode())
        return f"{stream_part.version}-{digest.hexdigest()[:16]}"

    def _competing(self) -> set[str]:
        """Returns the labels of which an event counts for the last of several impressions."""
        labels: set[str] = set()
        for name, join in self._config.labels_from.items():
            if join.competes(self._config.example_id):
                labels.add(name)
        return labels

    def _complete_us(self, name: str) -> int:
        """Returns the time before which a log is complete."""
        bounds = self._logs[name].bounds()
        lateness_us = microseconds(self._config.logs[name].lateness)
        times = [] if bounds is None else [bounds[1] - lateness_us]
        if self._until_us is not None:
            times.append(self._until_us)
        if not times:
            raise NotYetError(
                f"joined: logs.{name}: the files at {self._config.logs[name].path!r} have no event; if there are none, "
                "complete_until says until when"
            )
        return max(times)

    def _impressions_us(self, span_end_us: int) -> int:
        return span_end_us if self._until_us is None else max(span_end_us, self._until_us)

    def _delay_us(self, name: str) -> int:
        return next(microseconds(label.delay) for label in self._config.labels if label.name == name)

    def _warn(self, name: str, end_us: int) -> None:
        """Logs once that impressions wait for a log."""
        if (self._config.path, name) not in _WAITED_FOR:
            _WAITED_FOR.add((self._config.path, name))
            end = (_1970 + timedelta(microseconds=end_us)).isoformat(timespec="seconds")
            logger.warning(
                "joined: impressions from %s on wait for newer events of logs.%s; if there are none, complete_until "
                "says until when the logs are complete",
                *(end, name),
            )
