"""Writes captured graphs as programs: interpreted, compiled, and in ONNX."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from exfm.errors import RunError
from exfm.serving.capture import first_line
from exfm.serving.description import (
    COMPILED_FILE,
    COMPILED_REQUEST_FILE,
    ONNX_FILE,
    PROGRAM_FILE,
    REQUEST_FILE,
)
from exfm.serving.served_model import ServedModel
from exfm.serving.weights import remove_parameters

_COMPILED = {PROGRAM_FILE: COMPILED_FILE, REQUEST_FILE: COMPILED_REQUEST_FILE}

_CODE_ALONE = {
    "aot_inductor.package_constants_in_so": False,
    # By default the values of small parameters, and of parameters whose values are all equal, become part of the code.
    "always_keep_tensor_constants": True,
    "joint_graph_constant_folding": False,
}
"""Settings with which a compiled program holds no weights."""


def write_programs(
    programs: Mapping[str, ExportedProgram],
    for_onnx: ExportedProgram | None,
    served: ServedModel,
    compiled: bool,
    folder: Path,
) -> None:
    """Writes programs to a local folder, and takes the weights out of them.

    Args:
        programs: captured graphs by the name of their file.
        for_onnx: the graph of which an ONNX model is written.
        served: the model, for the names of its inputs and outputs.
        compiled: whether to write machine code too.
        folder: the folder.
    """
    # torch warns of deprecations in its code, which a user cannot act on.
    with warnings.catch_warnings(action="ignore"):
        if for_onnx is not None:
            to_onnx(for_onnx, served, folder / ONNX_FILE)
        for name, program in programs.items():
            if compiled:
                _compile(program, str(folder / _COMPILED[name]))
            program.example_inputs = None  # torch would pickle them, and `load` refuses pickles
            remove_parameters(program)
            torch.export.save(program, folder / name)


def _compile(program: ExportedProgram, path: str) -> None:
    """Compiles a captured graph without its weights.

    Raises:
        RunError: the code holds the value of a weight, so that it would be wrong with other weights.
    """
    torch._inductor.aoti_compile_and_package(program, package_path=path, inductor_configs=_CODE_ALONE)
    read_at_run = set(torch._inductor.aoti_load_package(path).get_constant_fqns())
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for spec in program.graph_signature.input_specs:
        name = spec.target
        if name in program.state_dict and placeholders[spec.arg.name].users and name not in read_at_run:
            raise RunError(f"the compiler makes the value of {name} part of the code; export with --no-compile")


def to_onnx(program: ExportedProgram, served: ServedModel, path: Path) -> None:
    """Writes a captured graph as an ONNX model.

    Raises:
        RunError: an operation of the graph has no ONNX form.
    """
    try:
        torch.onnx.export(
            program,
            (),
            path,
            input_names=served.names,
            output_names=list(served.model.tasks),
            external_data=False,
            verbose=False,
        )
    except torch.onnx.errors.OnnxExporterError as error:
        raise RunError(f"the model has no ONNX form: {_reason(error)}; export without --onnx") from error


def _reason(error: Exception) -> str:
    """Extracts the operation that torch could not translate from its long message."""
    causes = [line for line in str(error).splitlines() if line.startswith("<class ")]
    if not causes:
        return first_line(error)
    # The last line names the innermost cause: "<class ...>: sentence. More sentences."
    return causes[-1].partition(": ")[2].partition(". ")[0]
