"""A Redis server for tests: a process of its own, on a port of its own, that keeps nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Starts one, and stops it at the end; its URL. Skips the test where there is no server or no client."""
    redis = pytest.importorskip("redis", reason="needs the package redis")
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs redis-server (Debian: apt-get install redis-server)")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log, subprocess.Popen([program, *options], stdout=log) as process:
        try:
            with redis.Redis(port=port) as client:
                until = time.monotonic() + 30
                while not _answers(client, redis.RedisError):
                    assert process.poll() is None and time.monotonic() < until, (folder / "redis.log").read_text()
                    time.sleep(0.05)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


def _answers(client: object, error: type[Exception]) -> bool:
    try:
        return bool(client.ping())  # type: ignore[attr-defined]
    except error:
        return False
