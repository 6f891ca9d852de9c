"""Answers the page's requests: the page itself, the status of runs as JSON, and their reports. Nothing is written."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from ipaddress import ip_address
from socket import AF_INET, AF_INET6
from threading import Lock
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from exfm.errors import ConfigError, RunError
from exfm.redaction import redact
from exfm.web.runs import MOST_COMPARED, WatchedRun

_SILENT_S: Final = 30.0
"""Time after which a connection on which no request comes is closed, so that it keeps no thread."""

_LONGEST_LINE: Final = 16_384  # characters of a request's address: 40 runs, or 200 names of models

Query = Mapping[str, Sequence[str]]


@cache
def page() -> tuple[bytes, str]:
    """Returns the page in a single file, and the policy that lets a browser run its script and nothing else."""
    folder = files("exfm.web")
    style, script = (folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    html = folder.joinpath("page.html").read_text(encoding="utf-8")
    html = html.replace("/*style*/", style).replace("/*script*/", script)
    # By digest, so that a browser runs no script that a name or a message from a run might smuggle in.
    policy = (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return html.encode(), policy


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _is_loopback(host: str) -> bool:
    """Tells whether an address is of this machine alone; a name is that of a machine, but for localhost."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer(ThreadingHTTPServer):
    """Serves the page for some runs.

    Args:
        host, port: the address to listen on; port 0 is any that is free.
        runs: the runs that it shows, by number.
    """

    # Ctrl-C must not wait for browsers that keep their connections open.
    daemon_threads = True

    def __init__(self, host: str, port: int, runs: Sequence[WatchedRun]) -> None:
        # The family has to be that of the address: `::1` is of another than `127.0.0.1`.
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), _Handler)
        self.runs = runs
        # One at a time, because a comparison reads the predictions of all its runs.
        self.comparing = Lock()
        self.is_local = _is_loopback(host)

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = self.server_address[:2]
        return f"http://[{host!s}]:{port}/" if self.address_family is AF_INET6 else f"http://{host!s}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that has gone before its answer."""


class _Handler(BaseHTTPRequestHandler):
    timeout = _SILENT_S
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "exfm", ""
    server: PageServer

    def do_GET(self) -> None:
        """Answers a request."""
        try:
            self._answer()
        except ConfigError as error:
            # First, because ConfigError is a ValueError too.
            self._json({"error": str(error)}, HTTPStatus.NOT_FOUND)
        except (RunError, OSError, ValueError) as error:
            self._json({"error": redact(" ".join(str(error).split()))}, HTTPStatus.INTERNAL_SERVER_ERROR)

    do_HEAD = do_GET

    def _answer(self) -> None:
        if not self._is_addressed():
            self._json({"error": "this address is not of this page"}, HTTPStatus.FORBIDDEN)
            return
        address = urlsplit(self.path[:_LONGEST_LINE])
        query = parse_qs(address.query)
        if address.path == "/":
            content, policy = page()
            self._send(content, "text/html; charset=utf-8", policy)
        elif address.path == "/report":
            # As a document of no origin, which can ask this server for nothing.
            policy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
            self._send(self._run(query).report(), "text/html; charset=utf-8", policy)
        elif address.path in _ANSWERS:
            self._json(_ANSWERS[address.path](self, query))
        else:
            self._json({"error": "there is nothing here"}, HTTPStatus.NOT_FOUND)

    def _is_addressed(self) -> bool:
        """Tells whether the request names this machine, if the page is for this machine alone.

        Otherwise a page from elsewhere, whose name was pointed at this machine, could read the answers.
        """
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname or ""
        return not self.server.is_local or host in ("localhost", "127.0.0.1", "::1", self.server.server_address[0])

    def _run(self, query: Query) -> WatchedRun:
        (number, *_) = query.get("run", ["0"])
        return self._numbered(number)

    def _numbered(self, number: str) -> WatchedRun:
        # Nine digits at most, because Python takes long to convert, or refuses, a number of thousands of digits.
        is_number = number.isascii() and number.isdigit() and len(number) <= 9
        if not (is_number and int(number) < len(self.server.runs)):
            raise ConfigError(f"there is no such run; runs are numbered from 0 to {len(self.server.runs) - 1}")
        return self.server.runs[int(number)]

    def _list(self, query: Query) -> Any:
        return [{"run": number, "label": run.label} for number, run in enumerate(self.server.runs)]

    def _status(self, query: Query) -> Any:
        return self._run(query).status()

    def _history(self, query: Query) -> Any:
        return self._run(query).history(query.get("model", []))

    def _compare(self, query: Query) -> Any:
        from exfm.comparison.compare import compare  # late, because it imports torch

        runs = [self._numbered(number) for number in query.get("run", [])]
        if not 2 <= len(runs) <= MOST_COMPARED:
            raise ConfigError(f"choose two runs or more, and at most {MOST_COMPARED}")
        with self.server.comparing:
            return compare([run.url for run in runs]).as_dict()

    def _json(self, value: Any, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value).encode(), "application/json", "default-src 'none'", status)

    def _send(self, content: bytes, kind: str, policy: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        # Nothing is stored or sniffed, because texts of runs are not ours, and figures change with each commit.
        headers = {
            "Content-Type": kind,
            "Content-Length": str(len(content)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Writes no log of requests."""


_ANSWERS: Final[Mapping[str, Callable[[_Handler, Query], Any]]] = {
    "/api/runs": _Handler._list,
    "/api/status": _Handler._status,
    "/api/history": _Handler._history,
    "/api/compare": _Handler._compare,
}
