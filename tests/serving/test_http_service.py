"""The HTTP service withstands clients that are slow, numerous or faulty."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SERVER = Path(__file__).parents[2] / "examples/serving/server.py"
SECONDS, CONNECTIONS = 0.6, 4
BODY = json.dumps({"rows": [{"a": 1}]}).encode()
REQUEST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class Model:
    """Predicts 0.5 for every row, and fails at a row with a column `broken`."""

    def predict(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        if any("broken" in row for row in rows):
            raise RuntimeError("a secret of the model")
        return {"click": np.full(len(rows), 0.5)}

    @property
    def description(self) -> Model:
        return self

    def model_dump_json(self, include: set[str]) -> str:
        return "{}"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    spec = importlib.util.spec_from_file_location("server", SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Service(("127.0.0.1", 0), Model(), SECONDS, CONNECTIONS) as service:
        threading.Thread(target=service.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield service.server_address[1]
        service.shutdown()


@pytest.fixture
def send(port: int) -> Callable[[bytes], bytes]:
    """Returns a function that sends bytes, and receives until the server closes the connection."""

    def exchange(data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            client.sendall(data)
            pieces = []
            while piece := client.recv(65536):
                pieces.append(piece)
        return b"".join(pieces)

    return exchange


def statuses(answer: bytes) -> list[int]:
    return [int(response.split(b" ", 1)[0]) for response in answer.split(b"HTTP/1.1 ")[1:]]


def test_requests_on_a_connection_are_answered_until_the_client_is_silent(send: Callable[[bytes], bytes]) -> None:
    answer = send(REQUEST + REQUEST)
    assert statuses(answer) == [200, 200] and answer.endswith(b'{"predictions": [{"click": 0.5}]}')


CHUNKED = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
DOUBTFUL = {
    "both lengths": (CHUNKED + REQUEST, 400),
    "chunked": (CHUNKED.replace(b"Content-Length: 5\r\n", b"") + REQUEST, 411),
    "two lengths": (REQUEST.replace(b"Host: x", b"Content-Length: 3") + REQUEST, 400),
    "no number": (REQUEST.replace(b"Length: %d" % len(BODY), b"Length: +3") + REQUEST, 411),
    "no length": (b"POST /predict HTTP/1.1\r\nHost: x\r\n\r\n" + REQUEST, 411),
    "too large": (REQUEST.replace(b"Length: %d" % len(BODY), b"Length: 10000001") + REQUEST, 413),
    "no number that ends": (REQUEST.replace(b"Length: %d" % len(BODY), b"Length: " + b"9" * 5000) + REQUEST, 413),
    "a question with a body": (CHUNKED.replace(b"POST /predict", b"GET /") + REQUEST, 400),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_a_request_whose_end_is_in_doubt_is_answered_once(case: str, send: Callable[[bytes], bytes]) -> None:
    data, status = DOUBTFUL[case]
    answer = send(data)
    assert statuses(answer) == [status] and b"Connection: close" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]


def test_a_body_that_is_cut_short(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(REQUEST[:-3])
        client.shutdown(socket.SHUT_WR)
        assert statuses(client.recv(65536)) == [400]


def test_a_failure_of_the_model_is_a_json_error(
    send: Callable[[bytes], bytes], capfd: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"rows": [{"broken": 1}]}).encode()
    answer = send(REQUEST.replace(BODY, body).replace(b"%d" % len(BODY), b"%d" % len(body)) + REQUEST)
    assert statuses(answer) == [500, 200]
    assert b'{"error": "the prediction failed"}' in answer and b"secret" not in answer
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("beginning", [b"", b"POST /predict HTTP/1.1\r\n", REQUEST[:-1]])
def test_clients_that_send_half_a_request_hold_no_thread_for_ever(
    beginning: bytes, port: int, send: Callable[[bytes], bytes]
) -> None:
    slow = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(CONNECTIONS + 3)]
    for client in slow:
        client.sendall(beginning)
    refused = 0
    for client in slow:
        answer = b""
        with client, contextlib.suppress(ConnectionResetError):  # the server closes with unread bytes
            while piece := client.recv(65536):
                answer += piece
        refused += statuses(answer) == [503]
    assert refused or beginning, "there are more connections than the service takes"
    assert statuses(send(REQUEST)) == [200]


def test_a_request_that_arrives_byte_by_byte_times_out(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        closed = False
        for byte in REQUEST:  # fast enough for a limit per byte, too slow for a limit per request
            try:
                client.sendall(bytes([byte]))
            except OSError:
                closed = True
                break
            time.sleep(SECONDS / 10)
        assert closed
