"""The run's folder on any fsspec file system: whole files appear at once or not at all."""

from __future__ import annotations

import json
import re
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import xxhash
from fsspec.implementations.local import LocalFileSystem

from exfm.errors import ConfigError, RunError
from exfm.storage.exclusive import create_file, finish_creations
from exfm.storage.hashing import FileRecord, HashingWriter, naming_a_full_disk
from exfm.storage.temporary import spool_folder, sweep, temporary_file

_BLOCK = 1 << 20
_NUMBER = re.compile(r"\d{6,}", re.ASCII)

_NOT_EXCLUSIVE = (
    "this store writes over an object that exists although it is asked not to (a conditional write, If-None-Match: *), "
    "so that two jobs could commit the same window; keep the run in a store with conditional writes, or on a disk"
)


class MissingFileError(RunError):
    """A committed file is not there."""


class Workspace:
    """Files under one URL.

    On a local disk a file is written under a name that readers ignore and then renamed; for an object store, which
    shows an object only when its upload is complete, it is spooled to a local file first. Either way a reader never
    sees half a file.

    Args:
        url: the folder, any fsspec URL. It need not exist.
        remedy: what an error about a damaged file says besides.

    Raises:
        ConfigError: no file system goes by that URL, or its package is not installed.
    """

    def __init__(self, url: str, remedy: str = "") -> None:
        self.url = url
        self.remedy = remedy
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{url}: the folder cannot be used: {' '.join(str(error).split())}") from error
        self._local = isinstance(self.fs, LocalFileSystem)
        self._arrow = pafs.LocalFileSystem() if self._local else pafs.PyFileSystem(pafs.FSSpecHandler(self.fs))

    def path(self, relative: str) -> str:
        """The file system's own path of a file."""
        return f"{self.root.rstrip('/')}/{relative}"

    def name(self, relative: str) -> str:
        """What messages call a file."""
        return f"{self.url.rstrip('/')}/{relative}"

    @contextmanager
    def writing(self, relative: str) -> Iterator[HashingWriter]:
        """A file to write; it appears, whole, when the block ends without an exception.

        ``{digest}`` in its name stands for the first digits of its content's checksum: two writers of different
        content never meet under one name, and writing the same again changes nothing.

        Raises:
            RunError: the disk is full.
        """
        folder = self.path(relative).rpartition("/")[0]
        self._make_folder(folder)
        with temporary_file(folder) if self._local else temporary_file(spool_folder(), 0o600) as file:
            where = self.name(relative) if self._local else f"{file.name}, on its way to {self.name(relative)}"
            writer = HashingWriter(file, relative, where)
            yield writer
            writer.sync()
            target = self.path(writer.record().path)
            if self._local:
                Path(file.name).replace(target)
            elif not self._holds(writer.record()):  # never touch what a commit may already refer to
                self.fs.put_file(str(file.name), target)
                self._verify_size(target, writer.size)

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
        """Writes a small file unless it exists: of several writers at once exactly one is told True.

        Raises:
            RunError: the disk is full.
        """
        target = self.path(relative)
        self._make_folder(target.rpartition("/")[0])
        if self._local:
            with naming_a_full_disk(self.name(relative)):
                return create_file(target, data)
        try:
            self.fs.pipe_file(target, data, mode="create")
        except FileExistsError:
            return False
        self._verify_size(target, len(data))
        return True

    def check_create(self) -> None:
        """Checks that a file which exists is not written over where ``create`` asks for that.

        Raises:
            RunError: it is, as by an object store without conditional writes.
        """
        number = uuid.uuid4().hex
        probe = f".exfm.probe.{number[:12]}.{number[12:]}.tmp"  # of no machine: where it is left, it goes by its age
        try:
            created = [self.create(probe, b"1"), self.create(probe, b"2")]
        except (NotImplementedError, ValueError, TypeError) as error:
            raise RunError(f"{self.url}: {_NOT_EXCLUSIVE} ({error})") from error
        finally:
            self.remove_file(probe)
        if created != [True, False]:
            raise RunError(f"{self.url}: {_NOT_EXCLUSIVE}")

    def sweep(self, folders: Iterable[str] = ("",)) -> None:
        """Removes what writers have left unfinished that have died, and completes what they had created.

        Args:
            folders: of the workspace; what lies in folders inside of them is left alone.
        """
        for folder in folders if self._local else ():
            finish_creations(self.path(folder))
            sweep(self.path(folder))
        sweep(spool_folder())

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

    @contextmanager
    def reading(self, record: FileRecord) -> Iterator[BinaryIO]:
        """A committed file on a local disk: of an object store a copy, which is gone when nothing refers to it.

        Its checksum is taken before, in one pass at constant memory.

        Raises:
            RunError: the file is missing, or is not what was committed.
        """
        digest, size = xxhash.xxh3_128(), 0
        with ExitStack() as stack:
            try:
                if self._local:
                    file: BinaryIO = stack.enter_context(Path(self.path(record.path)).open("rb", buffering=0))
                else:
                    remote = stack.enter_context(self.fs.open(self.path(record.path), "rb"))
                    file = stack.enter_context(tempfile.TemporaryFile(dir=spool_folder(), buffering=0))
            except FileNotFoundError as error:
                raise self._missing(record) from error
            while block := (file if self._local else remote).read(_BLOCK):
                digest.update(block)
                size += len(block)
                if not self._local:
                    with naming_a_full_disk(f"{spool_folder()}, a copy of {self.name(record.path)}", size):
                        file.write(block)
            if size != record.bytes or digest.hexdigest() != record.xxh3:
                raise self._corrupt(record, size)
            file.seek(0)
            yield file

    def check(self, record: FileRecord) -> None:
        """Checks a committed file, in one pass at constant memory.

        Raises:
            RunError: the file is missing, or is not what was committed.
        """
        self.open_checked(record).close()

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

    def _missing(self, record: FileRecord) -> MissingFileError:
        return MissingFileError(f"{self.name(record.path)}: a committed file is missing{self.remedy}")

    def _corrupt(self, record: FileRecord, size: int) -> RunError:
        return RunError(
            f"{self.name(record.path)}: corrupt: {size} bytes whose checksum is not the committed one "
            f"({record.bytes} bytes){self.remedy}"
        )

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted; none where there is no folder. Hidden files are left out."""
        try:
            found = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise ConfigError(f"{self.url}: the folder cannot be used: {error.strerror}: {error.filename}") from error
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if not name.startswith("."))

    def remove_file(self, relative: str) -> None:
        """Removes a file, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(relative))

    def remove_tree(self, folder: str) -> None:
        """Removes a folder with all that is in it, if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.path(folder), recursive=True)

    def remove(self, folder: str) -> None:
        """Removes the files of a folder, if they are there, and the folder, if nobody writes to it just now."""
        for name in self.names(folder):
            self.remove_file(f"{folder}/{name}")
        if self._local:
            sweep(self.path(folder))
        with suppress(OSError):
            self.fs.rmdir(self.path(folder))


def numbered(names: Iterable[str], suffix: str = "") -> list[int]:
    """The numbers that names stand for, in order: of files and folders that are called by a number, others left out."""
    stems = (name.removesuffix(suffix) for name in names if name.endswith(suffix))
    return sorted(int(stem) for stem in stems if _NUMBER.fullmatch(stem))
