"""A small HTTP service over an exported model, with the standard library and exfm: `python server.py DIR --port 8000`.

``POST /predict`` takes ``{"rows": [{"column": value, ...}, ...]}`` and answers ``{"predictions": [{"task": probability,
...}, ...]}``, a prediction for each row. ``GET /`` says which model it is and which columns a row has.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import exfm
from exfm.serving import Predictor, load

MOST_BYTES = 10_000_000
MOST_CONNECTIONS = 64
_ALL_THERE_IS = "GET / and POST /predict are all there is"


class Service(ThreadingHTTPServer):
    """Answers each connection in a thread of its own, of which there are so many at most; they share the model.

    Args:
        seconds: how long a client may take to send a request's headers, to send its body, and to take the answer.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], predictor: Predictor, seconds: float, connections: int) -> None:
        super().__init__(address, Handler)
        self.predictor = predictor
        self.seconds = seconds
        self._room = threading.BoundedSemaphore(connections)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Starts a thread for a connection, or refuses it where there are too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
            return
        with contextlib.suppress(OSError):
            request.setblocking(False)
            request.send(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answers a connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says in a line how a connection failed, such as a client that went away."""
        print(f"{client_address[0]}: {sys.exception()!r}", file=sys.stderr, flush=True)


class TimedSocket(io.RawIOBase):
    """Reads from a connection until a deadline, however slowly the bytes come."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._deadline = 0.0

    def allow(self, seconds: float) -> None:
        """Sets the deadline, for reading and for writing."""
        self._deadline = time.monotonic() + seconds
        self._connection.settimeout(seconds)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads the bytes that are there.

        Raises:
            TimeoutError: nothing came before the deadline.
        """
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("the request took too long")
        self._connection.settimeout(left_s)
        return self._connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """A connection."""

    server: Service
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        """Reads from the connection with a deadline."""
        super().setup()
        self._timed = TimedSocket(self.connection)
        self.rfile = io.BufferedReader(self._timed)

    def handle_one_request(self) -> None:
        """Waits for a request and answers it; a client that is too slow is left."""
        self._timed.allow(self.server.seconds)
        super().handle_one_request()

    def do_GET(self) -> None:
        """Describes the model."""
        described = self.server.predictor.description
        if self._body() is None:
            return
        if self.path == "/":
            told = {"model", "snapshot", "watermark", "columns"}
            self._answer(HTTPStatus.OK, json.loads(described.model_dump_json(include=told)))
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": _ALL_THERE_IS})

    def do_POST(self) -> None:
        """Predicts rows."""
        if self.headers.get("Content-Length") is None and "Transfer-Encoding" not in self.headers:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say with Content-Length how many bytes the body has")
            return
        body = self._body()
        if body is not None:
            self._predict(body)

    def _body(self) -> bytes | None:
        """The request's body; None where it is refused, which has been answered.

        Where a request's end is in doubt, the rest of it could be taken for the next request: the connection is closed.
        """
        lengths = self.headers.get_all("Content-Length", ["0"])
        if "Transfer-Encoding" in self.headers:
            both = "Content-Length" in self.headers
            status = HTTPStatus.BAD_REQUEST if both else HTTPStatus.LENGTH_REQUIRED
            self._refuse(status, "send the body with Content-Length and without Transfer-Encoding")
        elif len(lengths) > 1:
            self._refuse(HTTPStatus.BAD_REQUEST, "send one Content-Length")
        elif not (lengths[0].isascii() and lengths[0].isdigit()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say with Content-Length how many bytes the body has")
        elif len(lengths[0]) > len(str(MOST_BYTES)) or int(lengths[0]) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MOST_BYTES} bytes")
        else:
            self._timed.allow(self.server.seconds)
            body = self.rfile.read(int(lengths[0]))
            if len(body) == int(lengths[0]):
                return body
            self._refuse(HTTPStatus.BAD_REQUEST, "the body is shorter than Content-Length says")
        return None

    def _predict(self, body: bytes) -> None:
        if self.path != "/predict":
            self._answer(HTTPStatus.NOT_FOUND, {"error": _ALL_THERE_IS})
            return
        try:
            found = self.server.predictor.predict(_rows(body))
        except (ValueError, RecursionError) as error:  # of JSON, or of exfm: a column is missing, or has another type
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        except Exception as error:  # the model's; its cause concerns whoever runs the service, not the client
            print(f"prediction failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": "the prediction failed"})
            return
        tasks = list(found)
        rows = zip(*(found[task].tolist() for task in tasks), strict=True)
        self._answer(HTTPStatus.OK, {"predictions": [dict(zip(tasks, row, strict=True)) for row in rows]})

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answers a request whose body is not read, and closes the connection."""
        self.close_connection = True
        self._answer(status, {"error": reason})

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self._timed.allow(self.server.seconds)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every request would be most of the work."""


def _rows(body: bytes) -> list[dict[str, Any]]:
    content = json.loads(body)
    rows = content.get("rows") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise exfm.ConfigError('send {"rows": [{"column": value, ...}, ...]}')
    return rows


def main() -> None:
    """Loads the export and serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", help="the folder that `exfm export` wrote, any fsspec URL")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--seconds", type=float, default=10.0, help="for a client to send headers, body, each")
    parser.add_argument("--connections", type=int, default=MOST_CONNECTIONS, help="at once")
    arguments = parser.parse_args()
    address = (arguments.host, arguments.port)
    with Service(address, load(arguments.export), arguments.seconds, arguments.connections) as service:
        described = service.predictor.description
        port = service.server_address[1]
        print(f"{described.model}, snapshot {described.snapshot}, on http://{arguments.host}:{port}", flush=True)
        service.serve_forever()


if __name__ == "__main__":
    main()
