"""Download: a public log that a data source reads, and the files of its release on the web."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_DIGITS = {"sha256": 64, "md5": 32}


@dataclass(frozen=True)
class Checksum:
    """The published checksum of a file.

    Attributes:
        algorithm: how it was computed.
        digest: its hexadecimal digits, in lower case.
        published: who publishes it, so that a reader can look it up.
    """

    algorithm: Literal["sha256", "md5"]
    digest: str
    published: str

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"[0-9a-f]{{{_DIGITS[self.algorithm]}}}", self.digest):
            raise ValueError(f"{self.digest!r} is no {self.algorithm}: {_DIGITS[self.algorithm]} digits of 0-9a-f")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a release.

    Attributes:
        url: its address, ``https://`` or ``http://``.
        size: its bytes; None where nobody publishes them.
        checksum: None where nobody publishes it: then the checksum at the first download is recorded, and a later
            download that differs is an error.
        members: the files of an archive (.zip, .tar, .tar.gz) that are kept, by name without folders; empty where the
            file is kept as it is.
    """

    url: str
    size: int | None = None
    checksum: Checksum | None = None
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("https", "http"):
            raise ValueError(f"{self.url!r} is no address of the web: it must begin with https:// or http://")
        for name in (self.name, *self.members):
            if not _FILE_NAME.fullmatch(name):
                raise ValueError(f"{self.url!r}: {name!r} is no file name: letters, digits, dots, '_' and '-'")

    @property
    def name(self) -> str:
        """Returns the name of the file, which is the last name of its address."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    @property
    def kept(self) -> tuple[str, ...]:
        """Returns the names of the files that are in the folder when all is done."""
        return self.members or (self.name,)


@dataclass(frozen=True)
class Download:
    """A public log, for ``exfm data get NAME``; a data source lists those that it reads in ``downloads``.

    Attributes:
        name: a lower-case identifier, unique among all data sources.
        title: a line that says which log it is.
        licence: a line with the terms of its publisher, shown before the download.
        home: the publisher's page.
        folder: the folder that it is written to by default, as the example expects it.
        files: the files of the release; empty where a tool may not fetch them.
        must_accept: whether the terms restrict the use, so that the user has to accept them.
        by_hand: how a user gets the files where a tool may not fetch them.
        fields: fields of the data source's config that read the files; ``{folder}`` stands for the folder.
        example: an experiment over the log, in ``examples/``.
    """

    name: str
    title: str
    licence: str
    home: str
    folder: str
    files: tuple[RemoteFile, ...] = ()
    must_accept: bool = False
    by_hand: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    example: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a download's name is a lower-case identifier, not {self.name!r}")
        if bool(self.files) == bool(self.by_hand):
            raise ValueError(f"{self.name}: a download has either files or a text how to get them by hand")
        kept: list[str] = []
        for file in self.files:
            kept += file.kept
        twice = sorted({name for name in kept if kept.count(name) > 1})
        if twice:
            raise ValueError(f"{self.name}: two of its files are called {twice[0]!r}")

    @property
    def size(self) -> int | None:
        """Returns the bytes of all files; None where those of some are not published."""
        total = 0
        for file in self.files:
            if file.size is None:
                return None
            total += file.size
        return total
