"""The run's folder on any fsspec file system: whole files appear at once or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import xxhash
from fsspec.implementations.local import LocalFileSystem

from exfm.errors import ConfigError, RunError


@dataclass(frozen=True)
class FileRecord:
    """A written file: path relative to the workspace, size, and checksum (XXH3, 128 bits)."""

    path: str
    bytes: int
    xxh3: str


class HashingWriter:
    """A binary file that keeps size and digest of what is written to it."""

    def __init__(self, file: IO[bytes], path: str) -> None:
        self._file = file
        self._path = path
        self._digest = xxhash.xxh3_128()
        self.size = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Writes bytes or a buffer."""
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Passes data on to the file system."""
        self._file.flush()

    def close(self) -> None:
        """Marks the writer closed; the workspace closes the file."""
        self.closed = True

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
        return False

    def record(self) -> FileRecord:
        """What was written."""
        digest = self._digest.hexdigest()
        return FileRecord(self._path.replace("{digest}", digest[:12]), self.size, digest)


class Workspace:
    """Files under one URL.

    On a local disk a file is written under a name that readers ignore and then renamed; for an object store, which
    shows an object only when its upload is complete, it is spooled to a local file first. Either way a reader never
    sees half a file.

    Args:
        url: the folder, any fsspec URL. It need not exist.

    Raises:
        ConfigError: no file system goes by that URL, or its package is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url}: the folder cannot be used: {' '.join(str(error).split())}") from error
        self._local = isinstance(self.fs, LocalFileSystem)
        self._arrow = pafs.LocalFileSystem() if self._local else pafs.PyFileSystem(pafs.FSSpecHandler(self.fs))

    def path(self, relative: str) -> str:
        """The file system's own path of a file."""
        return f"{self.root.rstrip('/')}/{relative}"

    @contextmanager
    def writing(self, relative: str) -> Iterator[HashingWriter]:
        """A file to write; it appears, whole, when the block ends without an exception.

        ``{digest}`` in its name stands for the first digits of its content's checksum: two writers of different
        content never meet under one name, and writing the same again changes nothing.
        """
        folder = self.path(relative).rpartition("/")[0]
        self._make_folder(folder)
        with tempfile.NamedTemporaryFile(
            dir=folder if self._local else None, prefix=".exfm.", suffix=".tmp", delete=False
        ) as file:
            try:
                writer = HashingWriter(file, relative)
                yield writer
                file.flush()
                os.fsync(file.fileno())
                target = self.path(writer.record().path)
                if self._local:
                    Path(file.name).replace(target)
                elif not self._holds(writer.record()):  # never touch what a commit may already refer to
                    self.fs.put_file(file.name, target)
                    self._verify_size(target, writer.size)
            finally:
                Path(file.name).unlink(missing_ok=True)

    def _make_folder(self, folder: str) -> None:
        try:
            self.fs.makedirs(folder, exist_ok=True)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{folder}: the folder cannot be made: {error.strerror or error}") from error

    def write(self, relative: str, data: bytes) -> FileRecord:
        """Writes a small file whole."""
        with self.writing(relative) as file:
            file.write(data)
        return file.record()

    def create(self, relative: str, data: bytes) -> bool:
        """Writes a small file unless it exists: of several writers at once exactly one is told True."""
        target = self.path(relative)
        self._make_folder(target.rpartition("/")[0])
        if not self._local:
            try:
                self.fs.pipe_file(target, data, mode="create")
            except FileExistsError:
                return False
            self._verify_size(target, len(data))
            return True
        with tempfile.NamedTemporaryFile(dir=target.rpartition("/")[0], prefix=".exfm.", suffix=".tmp") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            try:
                os.link(file.name, target)
            except FileExistsError:
                return False
        return True

    def _holds(self, record: FileRecord) -> bool:
        """Whether the file is there, whole."""
        try:
            self.open_checked(record).close()
        except RunError:
            return False
        return True

    def _verify_size(self, target: str, size: int) -> None:
        """Raises OSError where a store has taken less than it was given and said nothing."""
        self.fs.invalidate_cache()
        found = self.fs.size(target)
        if found != size:
            raise OSError(f"{target}: {size} bytes were written and {found} are there")

    def write_json(self, relative: str, value: Any) -> FileRecord:
        """Writes a JSON file whole; NaN is not JSON and is refused."""
        return self.write(relative, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())

    def exists(self, relative: str) -> bool:
        """Whether the file is there."""
        return bool(self.fs.exists(self.path(relative)))

    def read(self, relative: str) -> bytes:
        """A file's bytes.

        Raises:
            FileNotFoundError: it is not there.
        """
        return bytes(self.fs.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> Any:
        """A JSON file.

        Raises:
            RunError: it is not JSON.
        """
        try:
            return json.loads(self.read(relative))
        except json.JSONDecodeError as error:
            raise RunError(f"{self.url}/{relative}: not valid JSON: {error}") from error

    def read_checked(self, record: FileRecord) -> bytes:
        """A committed file's bytes.

        Raises:
            RunError: the file is missing, or is not what was committed.
        """
        try:
            data = self.read(record.path)
        except FileNotFoundError as error:
            raise self._missing(record) from error
        if len(data) != record.bytes or xxhash.xxh3_128_hexdigest(data) != record.xxh3:
            raise self._corrupt(record, len(data))
        return data

    def open_checked(self, record: FileRecord) -> pa.NativeFile:
        """A committed file, opened to be read here and there; its checksum is taken in one pass at constant memory.

        Raises:
            RunError: the file is missing, or is not what was committed.
        """
        try:
            file = self._arrow.open_input_file(self.path(record.path))
            if self._local and file.size() == record.bytes > 0:
                file.close()
                file = pa.memory_map(self.path(record.path))  # neither the checksum nor the reader copies it
        except FileNotFoundError as error:
            raise self._missing(record) from error
        size = file.size()
        digest = xxhash.xxh3_128()
        while size == record.bytes and (part := file.read_buffer(1 << 20)).size:
            digest.update(part)
        if size != record.bytes or digest.hexdigest() != record.xxh3:
            file.close()
            raise self._corrupt(record, size)
        file.seek(0)
        return file

    def _missing(self, record: FileRecord) -> RunError:
        return RunError(f"{self.url}/{record.path}: a committed file is missing")

    def _corrupt(self, record: FileRecord, size: int) -> RunError:
        return RunError(
            f"{self.url}/{record.path}: corrupt: {size} bytes whose checksum is not the committed one "
            f"({record.bytes} bytes)"
        )

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no folder. Hidden files are left out."""
        try:
            found = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if not name.startswith("."))

    def remove(self, folder: str) -> None:
        """Removes a folder and all that is in it, if it is there."""
        if self.exists(folder):
            self.fs.rm(self.path(folder), recursive=True)
