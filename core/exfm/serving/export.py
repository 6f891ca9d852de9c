"""Exports a snapshot's served part: a captured graph, the same compiled, and the description of their inputs.

Legend: B examples, V values of a feature, E events.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from exfm import __version__
from exfm.config.loading import Experiment
from exfm.data.column_types import is_usual, plain_rows
from exfm.data.windows import stream_windows
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import DenseFeature, Feature, SequenceFeature
from exfm.modeling.build import growth_of
from exfm.serving.layout import (
    AGES,
    COMPILED_FILE,
    DESCRIPTION_FILE,
    ONNX_FILE,
    PROGRAM_FILE,
    Description,
    ExportedFile,
    TensorSpec,
    input_specs,
    needs_event_time,
    source_columns,
    type_name,
)
from exfm.serving.network import ServedModel
from exfm.serving.snapshot import find_arm, find_snapshot, load_snapshot
from exfm.storage.finite import check_snapshot
from exfm.storage.temporary import spool_folder, temporary_folder
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store


@dataclass(frozen=True)
class Form:
    """In which forms a model is written, besides the program that ``torch.export`` captures.

    Attributes:
        compiled: machine code for this kind of machine (AOTInductor), which needs a C++ compiler.
        onnx: an ONNX model.
    """

    compiled: bool = True
    onnx: bool = False


def export(experiment: Experiment, model: str, out: str, form: Form = Form()) -> Description:
    """Exports the newest snapshot of a model.

    Args:
        experiment: from ``exfm.load_experiment``.
        model: a model's name; a control is called NAME.control.
        out: the folder, any fsspec URL; inputs.json is written last.
        form: what to write.

    Raises:
        ConfigError: there is no such model or no snapshot of it, or a tool that ``form`` needs is missing.
        RunError: the snapshot is corrupt or not finite, or the model cannot be captured or has no ONNX form.
    """
    arm = find_arm(experiment, model)
    _check_tools(form)
    store = Store(experiment.run_dir)
    snapshot, weights = load_snapshot(partial(find_snapshot, experiment, arm, store), store)
    growth = growth_of(arm, experiment.schema, experiment.config.seed)
    served = ServedModel(arm, experiment.schema, growth.of(weights))
    check_snapshot(snapshot, weights, served.constants, store.workspace.url)
    event_time = experiment.schema.event_time if needs_event_time(served.features) else ""
    columns = _column_types(experiment, served.features, event_time)
    try:
        program = capture(served)
    except Exception as error:  # whatever a component of a plugin does that cannot be captured
        raise RunError(f"models.{arm.base}: torch.export cannot capture it: {_first_line(error)}") from error
    _check(served, program, arm.base, 1e-5 if arm.config.precision == "fp32" else 1e-2)
    workspace = Workspace(out)
    workspace.sweep()
    with temporary_folder(spool_folder()) as folder:
        files = dict(_write(workspace, program, served, form, folder))
    description = Description(
        experiment=experiment.config.name,
        model=arm.name,
        snapshot=snapshot.version,
        watermark=datetime.fromtimestamp(snapshot.watermark_us / 1e6, UTC),
        versions={"exfm": __version__, "torch": torch.__version__},
        columns=columns,
        event_time=event_time,
        features=served.features,
        inputs=tuple(input_specs(served.features)),
        outputs=tuple(
            TensorSpec(name=task, dtype="float32", shape=("B",), holds="probability") for task in served.model.tasks
        ),
        files=files,
    )
    workspace.write(DESCRIPTION_FILE, (description.model_dump_json(indent=2) + "\n").encode())
    return description


def capture(served: ServedModel) -> ExportedProgram:
    """The graph of a served model, for any number of examples from one on and of values and events from none on."""
    tensors = tuple(_examples(served.features, size=5, longest=3))
    free = tuple({0: Dim.DYNAMIC} for _ in tensors)
    # Without this, a graph is captured either for sizes of one or for others.
    sizes_alike = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with sizes_alike, torch.no_grad():
        return torch.export.export(served, tensors, dynamic_shapes=(free,), strict=False)


def _examples(features: Sequence[Feature], size: int, longest: int) -> Iterator[Tensor]:
    """The program's arguments for some examples, with 0 to ``longest`` values or events each."""
    lengths = torch.arange(size) % (longest + 1)
    for spec in input_specs(features):
        name, _, part = spec.name.partition(".")
        feature = next((one for one in features if one.name == name), None)
        most = feature.max_length if isinstance(feature, SequenceFeature) else longest
        kept = lengths.clamp(max=most)
        shape = [size if dim == "B" else int(kept.sum()) if isinstance(dim, str) else dim for dim in spec.shape]
        if spec.dtype == "float32":
            yield torch.arange(torch.Size(shape).numel()).view(shape).sin()
        elif part == "starts":
            yield kept.cumsum(0) - kept
        elif spec.shape == ("B",):
            yield kept
        elif part == AGES:
            yield torch.arange(shape[0]).flip(0) ** 3
        else:
            yield torch.arange(shape[0]) % _table_rows(feature, part)


def _table_rows(feature: Feature | None, field: str) -> int:
    assert feature is not None and not isinstance(feature, DenseFeature)
    if isinstance(feature, SequenceFeature):
        return next(one.rows for one in feature.fields if one.name == field)
    return feature.rows


_SIZES = ((1, 0), (1, 1), (2, 1), (3, 0), (8, 40), (513, 3), (5_000, 2))
_PADDED = 1 << 25
"""Pairs of events at most in a check: a captured graph pads every history to the longest there may be."""


def _check(served: ServedModel, program: ExportedProgram, model: str, tolerance: float) -> None:
    """Raises RunError unless the captured graph gives what the model gives, at sizes other than the captured one."""
    run = program.module()
    histories = [one.max_length for one in served.features if isinstance(one, SequenceFeature)]
    largest = max(8, _PADDED // max(histories, default=1) ** 2)
    for size, longest in ((min(size, largest), longest) for size, longest in _SIZES):
        tensors = tuple(_examples(served.features, size, longest))
        try:
            with torch.no_grad():
                pairs = zip(run(*tensors), served(*tensors), strict=True)
                error = max(float((found - expected).abs().max()) for found, expected in pairs)
        except Exception as failure:  # a guard that torch.export has put into the graph
            raise RunError(
                f"models.{model}: the captured graph refuses {size} examples with histories of up to {longest} events: "
                f"{_first_line(failure)}"
            ) from failure
        if not error <= tolerance:
            raise RunError(
                f"models.{model}: for {size} examples with histories of up to {longest} events the captured graph is "
                f"{error:.2g} off the model: a component computes something else under torch.export"
            )


def _check_tools(form: Form) -> None:
    if form.compiled:
        try:
            get_cpp_compiler()
        except Exception as error:
            raise ConfigError("a compiled export needs a C++ compiler: install g++, or give --no-compile") from error
    if form.onnx and find_spec("onnxscript") is None:
        raise ConfigError("an ONNX export needs the package onnxscript: pip install 'exfm[onnx]'")


def _column_types(experiment: Experiment, features: Sequence[Feature], event_time: str) -> dict[str, str]:
    """The types of the columns that the features are read from, in the stream's first rows."""
    rows = _first_rows(experiment.source, experiment)
    plain = plain_rows(rows, experiment.schema)
    kinds = {}
    for column in (*source_columns(features), *([event_time] if event_time else [])):
        kind = rows.schema.field(column).type
        kinds[column] = type_name(kind if is_usual(kind) else plain.schema.field(column).type)
    return kinds


def _first_rows(source: DataSource, experiment: Experiment) -> pa.RecordBatch:
    for window in stream_windows(source, experiment.config.stream.window):
        for rows in source.read(window):
            if rows.num_rows:
                return rows
    raise ConfigError("stream.source: there are no rows any more, of which to see the types of the columns")


def _write(
    workspace: Workspace, program: ExportedProgram, served: ServedModel, form: Form, folder: Path
) -> Iterator[tuple[str, ExportedFile]]:
    with warnings.catch_warnings(action="ignore"):  # torch's own deprecations, of which a user can do nothing
        if form.compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / COMPILED_FILE))
        if form.onnx:
            to_onnx(program, served, folder / ONNX_FILE)
    program.example_inputs = None  # they would be pickled
    torch.export.save(program, folder / PROGRAM_FILE)
    for file in sorted(folder.iterdir()):
        with workspace.writing(file.name) as target, file.open("rb") as written:
            shutil.copyfileobj(written, target, 1 << 20)
        record = target.record()
        yield file.name, ExportedFile(bytes=record.bytes, xxh3=record.xxh3)


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
    """What torch says of the operation that it could not translate, among much else."""
    causes = [line for line in str(error).splitlines() if line.startswith("<class ")]
    return causes[-1].partition(": ")[2].partition(". ")[0] if causes else _first_line(error)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
