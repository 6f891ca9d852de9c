"""Decodes the values of messages to Arrow.

Legend: M messages.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import pyarrow as pa

from exfm.sources import read_objects

_TOMBSTONE = "it has no value (a tombstone)"


class Decoder(ABC):
    """Base of the formats of values.

    Args:
        types: the columns to decode, and their types.
    """

    def __init__(self, types: pa.Schema) -> None:
        self.types = types

    def decode(self, values: Sequence[bytes | None]) -> tuple[pa.RecordBatch, list[str | None]]:
        """Returns a row per value, and for each row the reason why its value cannot be read, or None.

        All columns of a row with a reason are null.
        """
        present = [number for number, value in enumerate(values) if value is not None]
        rows, read = self.decode_present([value for value in values if value is not None])
        if len(present) == len(values):
            return rows, read
        reasons: list[str | None] = [_TOMBSTONE] * len(values)
        positions: list[int | None] = [None] * len(values)
        for position, number in enumerate(present):
            reasons[number], positions[number] = read[position], position
        # A null index takes a null.
        return rows.take(pa.array(positions, pa.int64())), reasons

    @abstractmethod
    def decode_present(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, list[str | None]]:
        """Decodes values, none of which is missing."""


class JsonDecoder(Decoder):
    """Decodes JSON objects, all at once; a column that an object lacks is null."""

    def decode_present(self, values: Sequence[bytes]) -> tuple[pa.RecordBatch, list[str | None]]:
        """Decodes JSON objects."""
        # A line break in JSON is a space, and Arrow reads an object per line.
        rows, reasons = read_objects([value.replace(b"\n", b" ") for value in values], self.types)
        try:
            rows.validate(full=True)
        except pa.ArrowInvalid:
            # Arrow reads texts as they are, and checks them only when it is asked.
            for number, value in enumerate(values):
                if not _is_utf8(value):
                    reasons[number] = "it is not UTF-8"
            positions = [number if reason is None else None for number, reason in enumerate(reasons)]
            rows = rows.take(pa.array(positions, pa.int64()))
        return rows, reasons


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
