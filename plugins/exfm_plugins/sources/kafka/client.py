"""Reads messages of a topic by offset, through interruptions of the broker.

Legend: M messages.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from exfm.components import NotYetError, RowsRemovedError, suggestion
from exfm_plugins.sources.kafka.options import OptionValue, client_options, hide_secrets

logger = logging.getLogger(__name__)

_T = TypeVar("_T")

# How long a request waits before it is sent again, and a read before it looks whether its messages have come.
_REQUEST_S = 5.0
_WAIT_S = 0.2

# Errors that the client does not overcome by trying again.
_FINAL = (
    "_AUTHENTICATION",
    "_SSL",
    "SASL_AUTHENTICATION_FAILED",
    "UNSUPPORTED_SASL_MECHANISM",
    "TOPIC_AUTHORIZATION_FAILED",
    "GROUP_AUTHORIZATION_FAILED",
    "CLUSTER_AUTHORIZATION_FAILED",
    "TOPIC_EXCEPTION",
)


@dataclass(frozen=True)
class Messages:
    """Holds consecutive messages of a partition: offsets (M,), values, and the newest timestamp in milliseconds."""

    offset_M: NDArray[np.int64]
    values: Sequence[bytes | None]
    newest_ms: int


class Topic:
    """Reads a topic. Not for several threads at once.

    Args:
        servers: addresses of brokers.
        topic: its name.
        options, options_file: settings of the client.
        patience_s: how long the brokers may not answer.

    Raises:
        ValueError: from every method: a setting is wrong, or the client may not read the topic. A ``NotYetError`` if
            there is no such topic or the brokers do not answer.
    """

    def __init__(
        self, servers: str, topic: str, options: Mapping[str, OptionValue], options_file: str | None, patience_s: float
    ) -> None:
        try:
            import confluent_kafka
        except ModuleNotFoundError as error:
            raise ValueError("kafka needs the package confluent-kafka: pip install 'exfm[kafka]'") from error
        self._library: Any = confluent_kafka
        self._topic = topic
        self._patience_s = patience_s
        # The last trouble that the client has reported beside its answers, such as a failed login.
        self._trouble: Any = None
        self._position: tuple[int, int] | None = None
        settings = client_options(options, options_file)
        self._secrets = settings.secrets
        configuration = {
            "group.id": "exfm",
            # At the end of a partition, a short wait in which the broker may gather messages.
            "fetch.wait.max.ms": 10,
            **settings.values,
            "bootstrap.servers": servers,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "error_cb": self._note,
        }
        try:
            self._consumer: Any = confluent_kafka.Consumer(configuration, logger=logger)
        except (confluent_kafka.KafkaException, TypeError, ValueError) as error:
            raise ValueError(f"kafka: options: {self._said(error)}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def partitions(self) -> list[int]:
        """Lists the partitions there are now."""
        # All topics are listed only to name a similar topic, because clusters may have thousands.
        listed = self._ask(lambda timeout: self._consumer.list_topics(self._topic, timeout))
        topic = listed.topics[self._topic]
        if topic.error is None:
            return sorted(topic.partitions)
        if topic.error.name() in _FINAL:
            raise ValueError(f"kafka: topic: {self._topic!r} cannot be read: {topic.error.str()}")
        every = self._ask(lambda timeout: self._consumer.list_topics(timeout=timeout)).topics
        raise NotYetError(
            f"kafka: topic: the brokers have no topic {self._topic!r} ({topic.error.str()})."
            f"{suggestion(self._topic, [name for name in every if name != self._topic])}"
        )

    def offsets(self, partition: int) -> tuple[int, int]:
        """Returns the first offset that the broker keeps of a partition, and that after its last message."""
        position = self._library.TopicPartition(self._topic, partition)
        first, end = self._ask(lambda timeout: self._consumer.get_watermark_offsets(position, timeout, cached=False))
        return first, end

    def read(self, partition: int, first: int, end: int) -> Messages:
        """Reads the messages with offsets from ``first`` until before ``end``, of which some may not exist.

        Raises:
            RowsRemovedError: the broker has removed some of them.
        """
        if self._position != (partition, first):
            self._consumer.assign([self._library.TopicPartition(self._topic, partition, first)])
        self._position = None
        messages: list[Any] = []
        position, since = first, time.monotonic()
        while position < end:
            before = position
            for message in self._consumer.consume(end - position, _WAIT_S):
                if message.error() is not None:
                    position = self._after_error(message, partition, position)
                    continue
                position = message.offset() + 1
                # Offsets of transactions have no messages, so that a read may reach beyond the end.
                if position <= end:
                    messages.append(message)
            if position > before:
                since, self._trouble = time.monotonic(), None
                continue
            self._find_leader()
            if self._trouble is not None and self._trouble.name() in _FINAL:
                raise ValueError(f"kafka: {self._topic!r} cannot be read: {self._said(self._trouble)}")
            if time.monotonic() - since > self._patience_s:
                raise NotYetError(
                    f"kafka: {self._topic!r}, partition {partition}: nothing has come from offset {position} on for "
                    f"{self._patience_s:g} seconds{self._last_trouble}"
                )
        if position == end:
            self._position = partition, end
        return Messages(
            np.array([message.offset() for message in messages], np.int64),
            [message.value() for message in messages],
            max((message.timestamp()[1] for message in messages), default=0),
        )

    def _find_leader(self) -> None:
        """Asks which broker has the partition now, because after a cut the client waits for a second before it does."""
        try:
            self._consumer.list_topics(self._topic, _WAIT_S)
        except self._library.KafkaException as error:
            self._trouble = error.args[0]

    def stop(self) -> None:
        """Stops fetching ahead; the next read begins anew."""
        self._consumer.unassign()
        self._position = None

    def _after_error(self, message: Any, partition: int, position: int) -> int:
        """Returns the position after an event that is no message: the end of the partition, or trouble."""
        error = message.error()
        name = error.name()
        if name == "_PARTITION_EOF":
            # Beyond the last message there may be offsets of transactions.
            return max(position, int(message.offset()))
        if name in ("_AUTO_OFFSET_RESET", "OFFSET_OUT_OF_RANGE"):
            raise RowsRemovedError(
                f"kafka: {self._topic!r}, partition {partition}: the broker has removed offset {position}, which was "
                "there before. Let it keep messages for longer (retention.ms) than the job takes to read them"
            )
        if name in _FINAL:
            raise ValueError(f"kafka: {self._topic!r}, partition {partition}: {self._said(error)}")
        self._trouble = error
        return position

    def _ask(self, request: Callable[[float], _T]) -> _T:
        """Sends a request until the brokers answer."""
        until = time.monotonic() + self._patience_s
        while True:
            try:
                return request(max(0.1, min(_REQUEST_S, until - time.monotonic())))
            except self._library.KafkaException as error:
                # Serves the callback that notes trouble. Nothing is fetched meanwhile, because a message would be lost.
                self.stop()
                self._consumer.poll(0)
                cause = error.args[0]
                final = [each for each in (cause, self._trouble) if each is not None and each.name() in _FINAL]
                if final:
                    raise ValueError(f"kafka: {self._topic!r} cannot be read: {self._said(final[0])}") from error
                if time.monotonic() >= until:
                    raise NotYetError(
                        f"kafka: bootstrap_servers: the brokers do not answer: {self._said(cause)}{self._last_trouble}"
                    ) from error
                time.sleep(0.05)

    def _note(self, error: Any) -> None:
        self._trouble = error

    @property
    def _last_trouble(self) -> str:
        return "" if self._trouble is None else f" (last: {self._said(self._trouble)})"

    def _said(self, error: Any) -> str:
        """Returns the text of an error without secrets."""
        cause = error.args[0] if isinstance(error, Exception) and error.args else error
        text = cause.str() if hasattr(cause, "str") else str(cause)
        return hide_secrets(text, self._secrets)
