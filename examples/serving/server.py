"""A small HTTP service over an exported model, with the standard library and exfm: `python server.py DIR --port 8000`.

``POST /predict`` takes ``{"rows": [{"column": value, ...}, ...]}`` and answers
``{"predictions": [{"task": probability, ...}, ...]}``, one for each row. ``GET /`` says which model it is and which
columns a row has.
"""

from __future__ import annotations

import argparse
import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import exfm
from exfm.serving import Predictor, load

MOST_BYTES = 10_000_000


class Service(ThreadingHTTPServer):
    """Answers each request in a thread of its own; they share the model."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], predictor: Predictor) -> None:
        super().__init__(address, Handler)
        self.predictor = predictor


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Service
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Describes the model."""
        described = self.server.predictor.description
        if self.path == "/":
            told = {"model", "snapshot", "watermark", "columns"}
            self._answer(HTTPStatus.OK, json.loads(described.model_dump_json(include=told)))
        else:
            self._answer(HTTPStatus.NOT_FOUND, {"error": "GET / and POST /predict are all there is"})

    def do_POST(self) -> None:
        """Predicts rows."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "say with Content-Length how many bytes the body has")
        elif int(length) > MOST_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"send at most {MOST_BYTES} bytes")
        else:
            self._predict(self.rfile.read(int(length)))

    def _predict(self, body: bytes) -> None:
        if self.path != "/predict":
            self._answer(HTTPStatus.NOT_FOUND, {"error": "GET / and POST /predict are all there is"})
            return
        try:
            found = self.server.predictor.predict(_rows(body))
        except (ValueError, RecursionError) as error:  # of JSON, or of exfm: a column is missing, or has another type
            self._answer(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        tasks = list(found)
        rows = zip(*(found[task].tolist() for task in tasks), strict=True)
        self._answer(HTTPStatus.OK, {"predictions": [dict(zip(tasks, row, strict=True)) for row in rows]})

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        """Answers a request whose body is not read: what is left of it would be taken for the next request."""
        self.close_connection = True
        self._answer(status, {"error": reason})

    def _answer(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
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
    arguments = parser.parse_args()
    with Service((arguments.host, arguments.port), load(arguments.export)) as service:
        described = service.predictor.description
        host, port = service.server_address[:2]
        print(f"{described.model}, snapshot {described.snapshot}, on http://{host}:{port}", flush=True)
        service.serve_forever()


if __name__ == "__main__":
    main()
