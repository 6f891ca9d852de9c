"""Opens the tensors of a snapshot: of its files alone, or of the snapshots that it is put together from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from exfm.errors import RunError
from exfm.storage.delta_reader import DeltaReader
from exfm.storage.shard_index import IndexedTensor, read_index
from exfm.storage.shard_reader import ShardReader
from exfm.storage.tensor_files import TensorFile
from exfm.storage.workspace import MissingFileError, Workspace, base_name

if TYPE_CHECKING:
    from exfm.storage.snapshots import TensorFiles


def open_tensors(workspace: Workspace, chain: Sequence[TensorFiles]) -> ShardReader | DeltaReader:
    """Opens the tensors of a snapshot.

    Args:
        chain: its files, and those of the snapshots before it that it is put together from, newest first.

    Raises:
        RunError: the index is missing or corrupt.
    """
    readers = [_open_files(workspace, files) for files in reversed(chain)]
    return readers[0] if len(readers) == 1 else DeltaReader(readers, workspace.name(chain[0].index.path))


def _open_files(workspace: Workspace, files: TensorFiles) -> ShardReader:
    records = {base_name(record.path): record for record in files.files}
    where = workspace.name(files.index.path)
    try:
        content = json.loads(workspace.read_checked(files.index))
    except MissingFileError:
        # A snapshot that is not stored any more has lost all files, and is known by its weights.
        workspace.open_ranges(files.files[0], ()).close()
        raise
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON: {error}{workspace.remedy}") from error
    if not isinstance(content, dict):
        raise RunError(f"{where}: no index of tensors")
    if "tensors" in content:
        return ShardReader(workspace, records, read_index(content["tensors"].get(files.role), records, where))
    # Of a version without shards: a single file holds every tensor whole.
    ((name_of_file, record),) = records.items()
    with workspace.open_ranges(record, ()) as file:
        stored = TensorFile(file, workspace.name(record.path)).tensors
    whole = {name: IndexedTensor.from_stored(tensor, name_of_file) for name, tensor in stored.items()}
    return ShardReader(workspace, records, whole)
