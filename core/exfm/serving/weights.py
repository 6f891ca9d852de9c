"""Keeps the weights of an export in a separate file, beside programs that hold code alone.

So a new snapshot is a new file of weights. A process that serves the model maps it into memory, and loads no new code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from exfm.serving.description import WEIGHTS_FILES
from exfm.storage.hashing import FileRecord
from exfm.storage.tensor_files import read_tensors, write_tensors
from exfm.storage.workspace import Workspace


def program_weights(program: ExportedProgram) -> dict[str, Tensor]:
    """Returns the tensors that a captured graph computes with, by the names under which its programs know them."""
    # Constants too, such as masks: the compiled program knows them by name, as it knows parameters.
    named = {**program.state_dict, **program.constants}
    return {name: value.contiguous() for name, value in named.items() if isinstance(value, Tensor)}


_REQUEST = "request:"
"""Prefix of the weights that only the program of a request has, or that differ there, such as constants."""


def joint_weights(programs: Sequence[ExportedProgram]) -> dict[str, Tensor]:
    """Returns the weights of an export's program, and of its program of a request where it has one."""
    first, *others = map(program_weights, programs)
    joint = dict(first)
    for weights in others:
        for name, value in weights.items():
            if name not in first or not _equal(first[name], value):
                joint[f"{_REQUEST}{name}"] = value
    return joint


def _equal(left: Tensor, right: Tensor) -> bool:
    # Tables are the same memory: no comparison of gigabytes.
    same_memory = left.data_ptr() == right.data_ptr() and left.shape == right.shape
    return same_memory or (left.dtype == right.dtype and torch.equal(left, right))


def request_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights by the names under which the program of a request knows them."""
    named = dict(weights)
    for name, value in weights.items():
        if name.startswith(_REQUEST):
            named[name.removeprefix(_REQUEST)] = value
    return named


def write_weights(workspace: Workspace, weights: dict[str, Tensor]) -> FileRecord:
    """Writes the file of weights."""
    with workspace.writing(WEIGHTS_FILES.replace("*", "{digest}")) as file:
        write_tensors(file, weights)
    return file.record()


def read_weights(workspace: Workspace, record: FileRecord) -> dict[str, Tensor]:
    """Reads the weights of an export, after checking the file. Large tensors are memory-mapped.

    Raises:
        RunError: the file is missing or corrupt.
    """
    with workspace.reading(record) as file:
        return read_tensors(file, workspace.name(record.path))


def remove_parameters(program: ExportedProgram) -> None:
    """Replaces the parameters and buffers of a captured graph by tensors without memory, in place."""
    for name, value in program.state_dict.items():
        empty = value.to("meta")
        # The archive's reader expects a parameter where the graph has one.
        program.state_dict[name] = nn.Parameter(empty, False) if isinstance(value, nn.Parameter) else empty
