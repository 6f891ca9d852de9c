"""Transfers a file over HTTP: a transfer that is cut goes on where it ended, if the server's file is the same still.

A resumed transfer asks for the bytes that are missing (``Range``) of the version that it has begun (``If-Range``); a
server that has another version, or does not know ranges, sends the whole file, and the transfer starts over.
"""

from __future__ import annotations

import http.client
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from exfm import __version__
from exfm.downloads.partial_file import PartialFile
from exfm.downloads.progress import Progress, size_text
from exfm.errors import RunError
from exfm.interfaces.download import RemoteFile

_AT_ONCE = 1 << 18
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
"""Statuses that pass: time-outs, too many requests, and servers that are restarted."""


@dataclass(frozen=True)
class Patience:
    """How long a transfer waits.

    Attributes:
        tries: failures in a row, without a new byte between them, until it gives up.
        wait_s: seconds before the second try; they double with each failure.
        most_wait_s: the most seconds before a try, also if the server asks for more.
        stall_s: seconds without a byte until a connection counts as broken.
        sleep: waits.
    """

    tries: int = 6
    wait_s: float = 1.0
    most_wait_s: float = 60.0
    stall_s: float = 30.0
    sleep: Callable[[float], None] = time.sleep


PATIENCE = Patience()


class _InterruptedError(Exception):
    """A transfer has ended too early, and another try may help."""

    def __init__(self, reason: str, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def transfer(file: RemoteFile, path: Path, progress: Progress, patience: Patience = PATIENCE) -> None:
    """Writes a file of the web to ``path``, and goes on with the bytes that an earlier call has left there.

    Raises:
        RunError: the server has no such file, or another than the published one; it fails again and again; the disk is
            too small. The bytes so far are kept.
    """
    with PartialFile.open(path, file.url) as partial:
        furthest, failures = partial.size, 0
        while not partial.is_complete:
            try:
                _attempt(file, partial, progress, patience)
                return
            except _InterruptedError as error:
                # Bytes that were here before do not count: a server without ranges begins anew each time.
                failures = 1 if partial.size > furthest else failures + 1
                furthest = max(furthest, partial.size)
                if failures >= patience.tries:
                    kept = f"{size_text(partial.size)} are kept in {path}, from where the same command goes on"
                    raise RunError(f"{file.url}: {error}, {failures} times in a row; {kept}") from error
                wait_s = min(max(patience.wait_s * 2 ** (failures - 1), error.wait_s), patience.most_wait_s)
                progress.say(f"{file.name}: {error}; trying again in {wait_s:g} s")
                patience.sleep(wait_s)


def _attempt(file: RemoteFile, partial: PartialFile, progress: Progress, patience: Patience) -> None:
    """Requests the missing bytes once, and writes them."""
    start = partial.size
    # Without a version the bytes of two files could be joined, which a published checksum alone would notice.
    if not partial.validator and file.checksum is None:
        start = 0
    with _open(file.url, start, partial, patience) as response:
        _prepare(file, partial, response, start, progress)
        _check_space(partial)
        progress.begin(file.name, partial.size, partial.total)
        while data := _read(response, patience):
            partial.write(data)
            progress.advance(len(data))
    if partial.total is not None and partial.size < partial.total:
        raise _InterruptedError(f"the connection ended after {partial.size:,} of {partial.total:,} bytes")
    expected = partial.total if partial.total is not None else file.size
    if expected is not None and partial.size != expected:
        # Removed, because a repeated call would find the same bytes complete, and fail again.
        sent = partial.size
        partial.restart("", None)
        raise RunError(f"{file.url}: the server has sent {sent:,} bytes, and the file has {expected:,}")


def _prepare(file: RemoteFile, partial: PartialFile, response: Any, start: int, progress: Progress) -> None:
    """Compares a response with the bytes so far, and removes them if the response begins at the file's beginning."""
    validator, total = _validator(response.headers), _total(response)
    if file.size is not None and total is not None and total != file.size:
        raise RunError(
            f"{file.url}: the server's file has {total:,} bytes, and the published file {file.size:,}: it is another "
            "file; has the publisher released a new version?"
        )
    if response.status != HTTPStatus.PARTIAL_CONTENT:
        if start:
            progress.say(f"{file.name}: the server sends it from its beginning: it has changed, or cannot be resumed")
        partial.restart(validator, total)
        return
    bounds = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    # Some servers ignore If-Range, and send the range of another version.
    is_other = bool(partial.validator and validator and partial.validator != validator)
    if bounds is None or int(bounds[1]) != start or total != partial.total or is_other:
        partial.restart("", None)
        raise _InterruptedError("the file has changed while it was transferred")


def _open(url: str, start: int, partial: PartialFile, patience: Patience) -> Any:
    """Sends a request for the bytes from ``start``."""
    # Not compressed: a compressed stream cannot be resumed, nor its size be compared with the published size.
    headers = {"User-Agent": f"exfm/{__version__}", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if partial.validator:
            headers["If-Range"] = partial.validator
    try:
        return _OPENER.open(urllib.request.Request(url, headers=headers), timeout=patience.stall_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            partial.restart("", None)
            raise _InterruptedError("the file has become shorter") from error
        reason = f"the server answers {error.code} {error.reason}"
        if error.code in _TRY_AGAIN:
            raise _InterruptedError(reason, _retry_after(error.headers)) from error
        raise RunError(f"{url}: {reason}; its publisher may have moved it") from error
    except urllib.error.URLError as error:
        # Not tried again, because no certificate becomes valid within seconds.
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RunError(f"{url}: its certificate is not valid: {error.reason}") from error
        raise _InterruptedError(f"no connection: {error.reason}") from error
    except TimeoutError as error:
        raise _InterruptedError(f"no answer for {patience.stall_s:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"no answer: {type(error).__name__}: {error}") from error


def _read(response: Any, patience: Patience) -> bytes:
    try:
        # The bytes that are there, because those of a longer read would be lost when the connection breaks.
        data: bytes = response.read1(_AT_ONCE)
    except TimeoutError as error:
        raise _InterruptedError(f"no byte for {patience.stall_s:g} seconds") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(f"the connection broke: {type(error).__name__}") from error
    return data


def _validator(headers: Message) -> str:
    """Returns the header value that names a version; a weak ETag does not, since it may stand for other bytes."""
    etag = headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return headers.get("Last-Modified", "")


def _total(response: Any) -> int | None:
    """Returns the bytes of the complete file, where the server says."""
    bounds = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    text = response.headers.get("Content-Length", "") if bounds is None else bounds[2]
    return int(text) if text.isdigit() else None


def _retry_after(headers: Message) -> float:
    text = headers.get("Retry-After", "")
    return float(text) if text.isdigit() else 0.0


def _check_space(partial: PartialFile) -> None:
    free = shutil.disk_usage(partial.path.parent).free
    missing = (partial.total or 0) - partial.size
    if missing > free:
        raise RunError(
            f"{partial.path.parent} has {size_text(free)} free, and {size_text(missing)} are missing; free some, or "
            "choose a folder on another disk with --to"
        )


class _WebRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects inside the web alone: never to a local file, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Returns the request for the new address, with the same headers.

        Raises:
            RunError: the new address is not of the web, or is not encrypted and the old address was.
        """
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after not in ("https", before):
            raise RunError(f"{req.full_url} redirects to {after}://, which exfm does not follow")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _web_opener() -> urllib.request.OpenerDirector:
    """Builds an opener of http and https; urllib's default also opens files, FTP and data URLs."""
    opener = urllib.request.OpenerDirector()
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
        _WebRedirects(),
    ]
    for handler in handlers:
        opener.add_handler(handler)
    return opener


_OPENER = _web_opener()
