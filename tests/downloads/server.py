"""An HTTP server in a thread, whose answers can be cut, stalled, damaged and refused."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Behaviour:
    """How the server answers a request.

    Attributes:
        cut: bytes of the answer after which the connection is closed.
        stall: whether it says nothing more after ``cut`` bytes, instead of closing the connection.
        status: the status that it answers instead of the file.
        redirect: the address that it redirects to.
        ignore_if_range: whether it sends the range of any version.
        damage: whether a byte of the answer is changed.
    """

    cut: int | None = None
    stall: bool = False
    status: int = 0
    redirect: str = ""
    ignore_if_range: bool = False
    damage: bool = False


@dataclass
class Server:
    """Serves a single content under every path, and answers the first requests as ``script`` says.

    Attributes:
        content: the file.
        etag: its ETag; empty for none.
        ranges: whether it knows ranges.
        has_length: whether it says the length.
        script: how it answers the requests in turn; the others as it should.
        requests: the headers Range and If-Range of each request.
    """

    content: bytes
    etag: str = '"first"'
    ranges: bool = True
    has_length: bool = True
    script: list[Behaviour] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    address: str = ""

    def url(self, name: str = "log.bin") -> str:
        return f"{self.address}/{name}"

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @contextmanager
    def running(self) -> Iterator[Server]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the name that http.server calls
                server.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        http.daemon_threads = True
        thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        self.address = f"http://127.0.0.1:{http.server_port}"
        try:
            yield self
        finally:
            http.shutdown()
            http.server_close()
            thread.join()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        asked, version = handler.headers.get("Range", ""), handler.headers.get("If-Range", "")
        self.requests.append((asked, version))
        behaviour = self.script.pop(0) if self.script else Behaviour()
        if behaviour.redirect:
            handler.send_response(302)
            handler.send_header("Location", behaviour.redirect)
            handler.end_headers()
            return
        if behaviour.status:
            handler.send_response(behaviour.status)
            handler.end_headers()
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        is_range = bool(asked and self.ranges and (behaviour.ignore_if_range or version in ("", self.etag)))
        body = self.content[start:] if is_range else self.content
        if is_range and not body:
            handler.send_response(416)
            handler.end_headers()
            return
        handler.send_response(206 if is_range else 200)
        if is_range:
            handler.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        if self.etag:
            handler.send_header("ETag", self.etag)
        if self.has_length:
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        if behaviour.damage:
            body = body[:-1] + bytes([body[-1] ^ 1])
        handler.wfile.write(body if behaviour.cut is None else body[: behaviour.cut])
        handler.wfile.flush()
        if behaviour.stall:
            time.sleep(0.6)
