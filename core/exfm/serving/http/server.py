"""Runs the application with uvicorn, and closes connections on which no request arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from socket import socket
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from exfm.serving.http.app import Limits

_CONNECTIONS = 4
"""Connections at once for each request at once: most clients keep theirs open between requests."""


class Server(uvicorn.Server):
    """Serves an application until the process is asked to end.

    Args:
        app: the application.
        host, port: where it listens; port 0 is any that is free.
        limits: of requests and connections.
        on_listening: called with the address once it listens.
    """

    def __init__(self, app: FastAPI, host: str, port: int, limits: Limits, on_listening: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            app,
            host,
            port,
            http=_timed_protocol(limits.seconds),
            limit_concurrency=_CONNECTIONS * limits.requests,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=30,
        )
        super().__init__(config)
        self._on_listening = on_listening

    async def startup(self, sockets: list[socket] | None = None) -> None:
        """Begins to listen."""
        await super().startup(sockets)
        for server in self.servers:
            for listening in server.sockets:
                host, port = listening.getsockname()[:2]
                self._on_listening(f"http://{host}:{port}")


def _timed_protocol(seconds: float) -> type[asyncio.Protocol]:
    """Makes a protocol that gives a client so many seconds for the head of a request.

    uvicorn closes a connection that is silent after a request. A connection on which a request never begins, or never
    ends, would stay open.
    """

    class TimedProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop_clock()

        def _watch(self) -> None:
            """Starts the clock unless it runs; stops it while a request is answered, whose body has its own."""
            cycle = cast(Any, self.cycle)
            if cycle is not None and not cycle.response_complete:
                self._stop_clock()
            elif self._head is None and not self.transport.is_closing():
                self._head = self.loop.call_later(seconds, self.transport.close)

        def _stop_clock(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

    return TimedProtocol
