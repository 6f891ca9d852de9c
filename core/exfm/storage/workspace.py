"""Reads and writes files of the run's folder on any fsspec file system; written files appear atomically."""

from __future__ import annotations

import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import xxhash
from fsspec.implementations.local import LocalFileSystem

from exfm.errors import ConfigError, RunError
from exfm.storage.exclusive import create_file, finish_creations, prepared_file
from exfm.storage.hashing import FileRecord, HashingWriter, explain_full_disk
from exfm.storage.marks import why_missing
from exfm.storage.syncing import sync_all
from exfm.storage.temporary import make_folder, spool_folder, sweep, temporary_file

_BLOCK = 1 << 20  # bytes that are hashed at once: little memory, and few calls per gigabyte
_NUMBER = re.compile(r"\d{6,}", re.ASCII)

_NOT_EXCLUSIVE = (
    "this store writes over an object that exists although it is asked not to (a conditional write, If-None-Match: *), "
    "so that two jobs could commit the same window; keep the run in a store with conditional writes, or on a disk"
)


@dataclass(frozen=True)
class ByteRange:
    """Describes a range of a file's bytes: from ``start`` to before ``end``, and their checksum (XXH3, 128 bits)."""

    start: int
    end: int
    xxh3: str


class MissingFileError(RunError):
    """Reports a committed file that does not exist."""


class LetGoError(MissingFileError):
    """Reports a committed file that was removed on purpose: a retired snapshot, or rows that a vacuum has removed."""


class Workspace:
    """Reads and writes the files under a URL.

    On a local disk a file is written under a temporary name and then renamed. For an object store, which shows an
    object when its upload is complete, it is spooled to a local file first. Either way no reader sees half a file.

    Args:
        url: the folder, any fsspec URL. It need not exist.
        remedy: advice appended to errors about damaged files.

    Raises:
        ConfigError: no file system handles the URL, or its package is not installed.
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

    @property
    def is_local(self) -> bool:
        """Tells whether the folder is on a disk of this machine, or looks like it."""
        return self._local

    def path(self, relative: str) -> str:
        """Returns the path of a file for the fsspec file system."""
        return f"{self.root.rstrip('/')}/{relative}"

    def name(self, relative: str) -> str:
        """Returns the URL of a file, for messages."""
        return f"{self.url.rstrip('/')}/{relative}"

    @contextmanager
    def writing(self, relative: str, sync: bool = True) -> Iterator[HashingWriter]:
        """Opens a file for writing; it appears, complete, when the block ends without an exception.

        ``{digest}`` in the path stands for the first digits of the content's checksum. So writers of different content
        never use the same path, and writing equal content again changes nothing.

        Args:
            relative: path of the file.
            sync: whether the data is on disk before the file has its name. False for a file that counts only once a
                manifest names it, because ``creating`` waits for the data of many files at once.

        Raises:
            RunError: the disk is full.
        """
        folder = self.path(relative).rpartition("/")[0]
        self._make_folder(folder)
        # Private in the spool folder, because users of the machine share it.
        opening = temporary_file(folder) if self._local else temporary_file(spool_folder(), 0o600)
        with opening as file:
            where = self.name(relative)
            if not self._local:
                where = f"{file.name}, on its way to {where}"
            writer = HashingWriter(file, relative, where)
            yield writer
            writer.flush()
            target = self.path(writer.record().path)
            if self._local:
                if sync:
                    # The data must be on disk before the name is: after a power cut, a named file is complete.
                    writer.sync()
                Path(file.name).replace(target)
            elif not self._holds(writer.record()):  # never overwrite an object that a manifest may already name
                self.fs.put_file(str(file.name), target)
                self._verify_size(target, writer.size)

    def _make_folder(self, folder: str) -> None:
        make = make_folder if self._local else partial(self.fs.makedirs, exist_ok=True)
        try:
            make(folder)
        except (FileExistsError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise ConfigError(f"{folder}: the folder cannot be made: {error.strerror or error}") from error

    def write(self, relative: str, data: bytes, sync: bool = True) -> FileRecord:
        """Writes a small file; ``sync`` as in ``writing``."""
        with self.writing(relative, sync) as file:
            file.write(data)
        return file.record()

    def overwrite(self, relative: str, data: bytes) -> None:
        """Writes a small file that is written again soon, without asking the disk or the store whether it is kept."""
        if self._local:
            self.write(relative, data, sync=False)
            return
        self._make_folder(self.path(relative).rpartition("/")[0])
        self.fs.pipe_file(self.path(relative), data)

    def create(self, relative: str, data: bytes) -> bool:
        """Creates a small file and returns True, or returns False if it exists; only one concurrent writer gets True.

        Raises:
            RunError: the disk is full.
        """
        with self.creating({relative: data}) as create:
            return create(relative)

    @contextmanager
    def creating(
        self, files: Mapping[str, bytes], written: Iterable[FileRecord] = ()
    ) -> Iterator[Callable[[str], bool]]:
        """Prepares small files; yields a function that creates a single file by its path, as ``create`` does.

        Args:
            files: the content of each file, by path.
            written: files that were written before. Their data, and that of the small files, is on disk when the block
                begins: the disk is waited for once.

        Raises:
            RunError: the disk is full.
        """
        for folder in {self.path(relative).rpartition("/")[0] for relative in files}:
            self._make_folder(folder)
        if not self._local:
            yield lambda relative: self._put_exclusively(relative, files[relative])
            return
        with ExitStack() as stack:
            prepared: dict[str, BinaryIO] = {}
            for relative, data in files.items():
                with explain_full_disk(self.name(relative)):
                    prepared[relative] = stack.enter_context(prepared_file(self.path(relative), data))
            # After a power cut, a named file is complete, and so are the files that a manifest names.
            with explain_full_disk(self.url):
                sync_all([*(file.name for file in prepared.values()), *(self.path(file.path) for file in written)])

            def create(relative: str) -> bool:
                with explain_full_disk(self.name(relative)):
                    return create_file(prepared[relative], self.path(relative), files[relative])

            yield create

    def _put_exclusively(self, relative: str, data: bytes) -> bool:
        target = self.path(relative)
        try:
            self.fs.pipe_file(target, data, mode="create")
        except FileExistsError:
            return False
        self._verify_size(target, len(data))
        return True

    def check_create(self) -> None:
        """Checks that ``create`` does not overwrite an existing file, by creating a probe file twice.

        Raises:
            RunError: the file was overwritten, as by an object store without conditional writes.
        """
        number = uuid.uuid4().hex
        # The name matches those of temporary files, with "probe" for the machine: a sweep removes leftovers by age.
        probe = f".exfm.probe.{number[:12]}.{number[12:]}.tmp"
        try:
            created = [self.create(probe, b"1"), self.create(probe, b"2")]
        except (NotImplementedError, ValueError, TypeError) as error:
            raise RunError(f"{self.url}: {_NOT_EXCLUSIVE} ({error})") from error
        finally:
            self.remove_file(probe)
        if created != [True, False]:
            raise RunError(f"{self.url}: {_NOT_EXCLUSIVE}")

    def sweep(self, folders: Iterable[str] = ("",)) -> None:
        """Removes unfinished files of writers that have died, and completes the files that they had created.

        Args:
            folders: folders of the workspace to sweep, without their subfolders.
        """
        for folder in folders if self._local else ():
            finish_creations(self.path(folder))
            sweep(self.path(folder))
        sweep(spool_folder())

    def _holds(self, record: FileRecord) -> bool:
        """Tells whether the file exists and has the recorded content."""
        try:
            self.open_checked(record).close()
        except RunError:
            return False
        return True

    def _verify_size(self, target: str, size: int) -> None:
        """Raises OSError if a store has kept fewer bytes than were written without reporting it."""
        # fsspec caches listings: without this the size could be that of an earlier object.
        self.fs.invalidate_cache()
        stored = self.fs.size(target)
        if stored != size:
            raise OSError(f"{target}: {size} bytes were written and {stored} are there")

    def write_json(self, relative: str, value: Any, sync: bool = True) -> FileRecord:
        """Writes a JSON file; rejects NaN, which is not JSON."""
        return self.write(relative, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode(), sync)

    def exists(self, relative: str) -> bool:
        """Tells whether the file exists."""
        return bool(self.fs.exists(self.path(relative)))

    def read(self, relative: str) -> bytes:
        """Reads a file.

        Raises:
            FileNotFoundError: the file does not exist.
        """
        return bytes(self.fs.cat_file(self.path(relative)))

    def read_json(self, relative: str) -> Any:
        """Reads and parses a JSON file.

        Raises:
            RunError: the file is not JSON.
        """
        try:
            return json.loads(self.read(relative))
        except json.JSONDecodeError as error:
            raise RunError(f"{self.url}/{relative}: not valid JSON: {error}") from error

    def read_checked(self, record: FileRecord) -> bytes:
        """Reads a committed file and checks it.

        Raises:
            RunError: the file is missing, or its content is not the committed content.
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
        """Opens a committed file on a local disk, after checking it in constant memory.

        A file of an object store is copied to an unnamed local file, which the system removes with its last mapping.

        Raises:
            RunError: the file is missing, or its content is not the committed content.
        """
        digest, size = xxhash.xxh3_128(), 0
        with ExitStack() as stack:
            try:
                if self._local:
                    # Unbuffered, because tensors are read straight into their memory.
                    file: BinaryIO = stack.enter_context(Path(self.path(record.path)).open("rb", buffering=0))
                    remote = file
                else:
                    remote = stack.enter_context(self.fs.open(self.path(record.path), "rb"))
                    file = stack.enter_context(tempfile.TemporaryFile(dir=spool_folder(), buffering=0))
            except FileNotFoundError as error:
                raise self._missing(record) from error
            while block := remote.read(_BLOCK):
                digest.update(block)
                size += len(block)
                if not self._local:
                    with explain_full_disk(f"{spool_folder()}, a copy of {self.name(record.path)}", size):
                        file.write(block)
            if size != record.bytes or digest.hexdigest() != record.xxh3:
                raise self._corrupt(record, size)
            file.seek(0)
            yield file

    def check(self, record: FileRecord) -> None:
        """Checks a committed file in constant memory.

        Raises:
            RunError: the file is missing, or its content is not the committed content.
        """
        self.open_checked(record).close()

    def open_checked(self, record: FileRecord) -> pa.NativeFile:
        """Opens a committed file for random access, after checking it in constant memory.

        Raises:
            RunError: the file is missing, or its content is not the committed content.
        """
        return self.open_ranges(record, (ByteRange(0, record.bytes, record.xxh3),))

    def open_ranges(self, record: FileRecord, ranges: Iterable[ByteRange]) -> pa.NativeFile:
        """Opens a committed file for random access, after checking its size and some of its bytes in constant memory.

        Raises:
            RunError: the file is missing, or its content is not the committed content.
        """
        try:
            file = self._arrow.open_input_file(self.path(record.path))
            if self._local and file.size() == record.bytes > 0:
                file.close()
                # Neither the checksum nor the reader copies a mapping. An empty file cannot be mapped.
                file = pa.memory_map(self.path(record.path))
        except FileNotFoundError as error:
            raise self._missing(record) from error
        size = file.size()
        if size != record.bytes or any(range_digest(file, span.start, span.end) != span.xxh3 for span in ranges):
            file.close()
            raise self._corrupt(record, size)
        file.seek(0)
        return file

    def _missing(self, record: FileRecord) -> MissingFileError:
        reason = why_missing(self, record.path)
        if reason:
            return LetGoError(f"{self.name(record.path)}: {reason}")
        return MissingFileError(f"{self.name(record.path)}: a committed file is missing{self.remedy}")

    def _corrupt(self, record: FileRecord, size: int) -> RunError:
        return RunError(
            f"{self.name(record.path)}: corrupt: {size} bytes whose checksum is not the committed one "
            f"({record.bytes} bytes){self.remedy}"
        )

    def names(self, folder: str) -> list[str]:
        """Lists the names in a folder, sorted, without hidden files; the list is empty if there is no folder."""
        try:
            if self._local:
                # Not by fsspec, which asks a disk for the size and time of each file besides.
                with os.scandir(self.path(folder)) as entries:
                    paths = [entry.name for entry in entries]
            else:
                paths = self.fs.ls(self.path(folder), detail=False, refresh=True)
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise ConfigError(f"{self.url}: the folder cannot be used: {error.strerror}: {error.filename}") from error
        names: list[str] = []
        for path in paths:
            name = str(path).rstrip("/").rpartition("/")[2]
            if not name.startswith("."):
                names.append(name)
        return sorted(names)

    def remove_file(self, relative: str) -> None:
        """Removes a file if it exists."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(self.path(relative))

    def remove_tree(self, folder: str) -> None:
        """Removes a folder and its content if it exists."""
        with suppress(FileNotFoundError):
            self.fs.rm(self.path(folder), recursive=True)

    def remove(self, folder: str) -> None:
        """Removes the files of a folder, and the folder itself unless another process is writing to it."""
        for name in self.names(folder):
            self.remove_file(f"{folder}/{name}")
        if self._local:
            sweep(self.path(folder))
        with suppress(OSError):  # the folder is not empty, because another process writes to it
            self.fs.rmdir(self.path(folder))


def range_digest(file: pa.NativeFile, start: int, end: int) -> str:
    """Computes the checksum (XXH3, 128 bits) of a range of a file's bytes, in constant memory."""
    digest = xxhash.xxh3_128()
    file.seek(start)
    while start < end and (block := file.read_buffer(min(_BLOCK, end - start))).size:
        digest.update(block)
        start += block.size
    return digest.hexdigest()


def numbered(names: Iterable[str], suffix: str = "") -> list[int]:
    """Returns, in order, the numbers of the files or folders whose names are a number before the suffix."""
    numbers: list[int] = []
    for name in names:
        stem = name.removesuffix(suffix)
        if name.endswith(suffix) and _NUMBER.fullmatch(stem):
            numbers.append(int(stem))
    return sorted(numbers)


def base_name(path: str) -> str:
    """Returns the name of a file without its folder."""
    return path.rpartition("/")[2]
