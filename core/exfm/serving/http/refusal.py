"""Defines the refusal of a request."""

from __future__ import annotations


class RefusedError(Exception):
    """A request is refused.

    Args:
        status: of the response.
        reason: for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
