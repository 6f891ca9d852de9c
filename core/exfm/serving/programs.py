"""Loads the code of an exported program, and joins it with weights.

The programs of two joins share no weights: requests end with the program that they began
with, while a new program is made and afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Protocol
from weakref import finalize

import torch
from torch import Tensor
from torch.export.pt2_archive._package import AOTICompiledModel

from exfm.errors import RunError
from exfm.serving.archives import check_archive
from exfm.serving.description import PROGRAM_FILE, PROGRAM_FILES, REQUEST_FILE, Description
from exfm.serving.folder import file_record
from exfm.storage.workspace import Workspace

Program = Callable[..., tuple[Tensor, ...]]
"""Maps the tensors of an export's inputs to the prediction of each task."""


class Code(Protocol):
    """Holds the code of a program, without weights."""

    def join(self, weights: Mapping[str, Tensor]) -> Program:
        """Returns a program with these weights, which are not copied.

        Raises:
            KeyError: a weight is missing.
        """
        ...


class CapturedCode:
    """Holds the graph that ``torch.export`` captured, which torch interprets."""

    def __init__(self, data: bytes) -> None:
        self._program = torch.export.load(BytesIO(data))

    def join(self, weights: Mapping[str, Tensor]) -> Program:
        """Makes a module of the graph, and assigns the weights."""
        module = self._program.module()
        module.load_state_dict({name: weights[name] for name in module.state_dict()}, assign=True)
        program: Program = module
        return program


class CompiledProgram:
    """Runs machine code with weights, to which the code has pointers alone: both live as long as the program."""

    def __init__(self, model: AOTICompiledModel, weights: Mapping[str, Tensor]) -> None:
        self._model, self._weights = model, weights

    def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Runs the code on a list of tensors; called as a model it would parse the tree of its arguments each time."""
        return tuple(self._model.loader.boxed_run(list(tensors)))


class CompiledCode:
    """Holds machine code that AOTInductor has compiled."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._free: list[tuple[AOTICompiledModel, Mapping[str, Tensor]]] = []

    def join(self, weights: Mapping[str, Tensor]) -> Program:
        """Points the code to the weights; where it runs with others, it is loaded again, which takes milliseconds."""
        # The weights before are still pointed to until the new ones are loaded.
        model, before = self._free.pop() if self._free else (torch._inductor.aoti_load_package(BytesIO(self._data)), {})
        used = {name: weights[name] for name in model.get_constant_fqns()}
        model.load_constants(used, check_full_update=True, user_managed=True)
        del before
        program = CompiledProgram(model, used)
        # Loaded code is never unloaded: it is used again when the last request has let go of the program.
        finalize(program, self._free.append, (model, used))
        return program


def load_code(workspace: Workspace, description: Description, name: str) -> Code:
    """Loads the code of a program of an export.

    Args:
        name: one of ``PROGRAM_FILES``.

    Raises:
        RunError: the file is corrupt, has entries that exfm does not write, or was compiled for another torch version.
    """
    where = f"{workspace.url}/{name}"
    data = workspace.read_checked(file_record(description, name))
    if name in (PROGRAM_FILE, REQUEST_FILE):
        try:
            check_archive(BytesIO(data))
        except ValueError as error:
            raise RunError(f"{where}: not a program that `exfm export` has written: {error}") from error
        return CapturedCode(data)
    assert name in PROGRAM_FILES
    # Compiled code calls torch's C++ functions, whose binary interface changes between versions.
    exported = description.versions["torch"]
    if exported != torch.__version__:
        raise RunError(
            f"{where}: compiled for torch {exported}, and this is {torch.__version__}; "
            "export again with this one, or load with compiled=False"
        )
    return CompiledCode(data)
