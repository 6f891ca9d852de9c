"""Files of JSON lines: which there are, and their rows as record batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import exfm
import fsspec
import pyarrow as pa
from exfm.sources import list_files
from fsspec.core import url_to_fs
from pyarrow import json

_ENDINGS = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".zst", ".bz2")
_BLOCK_BYTES = 1 << 20


def find_files(path: str) -> dict[str, str]:
    """URLs of a file, a pattern's files, or all in a folder that are named like JSON lines; each with its version.

    The version is size and time of change, or whatever else the file system has for it.

    Raises:
        ValueError: there is none.
    """
    filesystem, place = url_to_fs(path)
    try:
        found = list_files(filesystem, place, "")
    except OSError as error:
        raise ValueError(f"jsonl: {path} cannot be read: {error}") from error
    whole_folder = filesystem.isdir(place)
    files = {file: info for file, info in found.items() if _is_log(file) or not whole_folder}
    if not files:
        raise exfm.components.NotYetError(
            f"jsonl: {path}: no such file, or a folder without files named *.jsonl, *.ndjson or *.json"
        )
    return {filesystem.unstrip_protocol(file): _version(info) for file, info in files.items()}


def _version(info: dict[str, Any]) -> str:
    tags = (info.get(name) for name in ("ETag", "etag", "mtime", "LastModified", "created"))
    return f"{info['size']}-{next((tag for tag in tags if tag), '')}"


def _is_log(file: str) -> bool:
    for ending in _PACKED:
        file = file.removesuffix(ending)
    return file.endswith(_ENDINGS)


def read_file(url: str, types: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A file's rows, a block at a time; fields of nested objects are columns such as ``user.id``.

    Args:
        url: of the file, packed by gzip, zstd or bzip2 where its name says so.
        types: of columns whose types are known; those of the others are the first block's.

    Raises:
        ValueError: the file cannot be read, or is not JSON lines of the same shape.
    """
    row = 0
    with _told(url), _opened(url) as stream, _reader(stream, types) as reader:
        for block in reader:
            yield exfm.sources.Origin(url, row).mark(_flat(block))
            row += block.num_rows


def read_types(url: str, known: pa.Schema) -> pa.Schema:
    """The types that a file's first block has, some of them known; objects are not taken apart.

    Raises:
        ValueError: the file cannot be read.
    """
    with _told(url), _opened(url) as stream, _reader(stream, known) as reader:
        return reader.schema


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Says which file an error is of."""
    try:
        yield
    except (OSError, EOFError, pa.ArrowInvalid) as error:
        raise ValueError(f"jsonl: {url} cannot be read as JSON lines: {error}") from error


def _reader(stream: Any, types: pa.Schema) -> Any:
    read = json.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    return json.open_json(stream, read_options=read, parse_options=json.ParseOptions(explicit_schema=types))


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    with fsspec.open(url, "rb") as file:
        packed = url.endswith(_PACKED)
        yield pa.CompressedInputStream(file, pa.Codec.detect(url).name) if packed else pa.PythonFile(file, "r")


def _flat(block: pa.RecordBatch) -> pa.RecordBatch:
    """Objects' fields as columns."""
    table = pa.Table.from_batches([block])
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table.combine_chunks().to_batches()[0]
