"""Exports the served layers of a snapshot: a captured graph, a compiled program, and a description of their inputs.

Legend: B examples, V values of a feature, E events.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
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
from exfm.data.column_types import is_list, is_usual, plain_rows
from exfm.data.label_columns import held_by
from exfm.data.windows import stream_windows
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import DenseFeature, Feature, SequenceFeature, SequenceField
from exfm.interfaces.vector_feature import VectorFeature
from exfm.mappings import by_name
from exfm.modeling.build import build_growth
from exfm.modeling.difference import relative_difference
from exfm.serving.card import render_card
from exfm.serving.description import (
    AGES,
    CARD_FILE,
    COMPILED_FILE,
    DENSE,
    DESCRIPTION_FILE,
    ONNX_FILE,
    PROGRAM_FILE,
    Description,
    ExportedFile,
    TensorSpec,
    embedding_input,
    input_specs,
    needs_event_time,
    source_columns,
    type_name,
)
from exfm.serving.find_snapshot import find_arm, find_snapshot, load_snapshot
from exfm.serving.served_model import ServedModel
from exfm.sources.ids import holds_bytes
from exfm.storage.aliases import LATEST
from exfm.storage.finite import check_snapshot
from exfm.storage.temporary import spool_folder, temporary_folder
from exfm.storage.workspace import Workspace
from exfm.supervision.store import open_store


@dataclass(frozen=True)
class Form:
    """Selects the forms in which a model is written, besides the program that ``torch.export`` captures.

    Attributes:
        compiled: writes machine code for machines like this (AOTInductor), which needs a C++ compiler.
        onnx: writes an ONNX model.
    """

    compiled: bool = True
    onnx: bool = False


def export(
    experiment: Experiment, model: str, out: str, form: Form = Form(), at: str = LATEST, *, compute_figures: bool = True
) -> Description:
    """Exports a snapshot of a model, with its model card.

    Args:
        experiment: from ``exfm.load_experiment``.
        model: a model's name; a control is called NAME.control.
        out: the folder, any fsspec URL; inputs.json is written last.
        form: forms to write.
        at: version, alias or time of the snapshot; the newest that is published by default.
        compute_figures: whether the card's figures are computed from predictions where results.json has none for the
            snapshot, which takes as long as an evaluation of the model, its control and its teachers.

    Raises:
        ConfigError: there is no such model or no such snapshot of it, or a tool that ``form`` needs is missing.
        RunError: the snapshot is corrupt or not finite, or the model cannot be captured or has no ONNX form.
    """
    arm = find_arm(experiment, model)
    _check_tools(form)
    # A sweep may have trained the model in the folder of another point.
    opened = open_store(experiment)
    store = opened.home(arm.name).store
    snapshot, weights = load_snapshot(partial(find_snapshot, experiment, arm, store, at), store.snapshots.load_whole)
    growth = build_growth(arm, experiment.schema, experiment.config.seed)
    served = ServedModel(arm, experiment.schema, growth.grow_whole(weights))
    check_snapshot(snapshot, weights, served.constants, store.workspace.url)
    event_time = experiment.schema.event_time if needs_event_time(served.features) else ""
    columns = _column_types(experiment, served.features, event_time)
    columns |= {embedding_input(teacher): "list of double" for teacher in served.embeddings}
    try:
        program = capture(served)
    except Exception as error:  # torch raises many types for code of plugins that it cannot capture
        raise RunError(f"models.{arm.base}: torch.export cannot capture it: {_first_line(error)}") from error
    # Probabilities: fp32 is summed in another order; bf16 has 8 bits, a step of 4e-3 below 1.
    tolerance = 1e-5 if arm.config.precision == "fp32" else 1e-2
    _check(served, program, arm.base, tolerance)
    workspace = Workspace(out)
    workspace.sweep()
    with temporary_folder(spool_folder()) as folder:
        files = dict(_write(workspace, program, served, form, folder))
    outputs: list[TensorSpec] = []
    for task, label in served.model.labels.items():
        shape: tuple[int | str, ...] = ("B", label.width) if label.kind == "multiclass" else ("B",)
        outputs.append(TensorSpec(name=task, dtype="float32", shape=shape, holds=held_by(label)))
    description = Description(
        experiment=experiment.config.name,
        model=arm.name,
        snapshot=snapshot.version,
        watermark=datetime.fromtimestamp(snapshot.watermark_us / 1e6, UTC),
        versions={"exfm": __version__, "torch": torch.__version__},
        columns=columns,
        event_time=event_time,
        features=served.features,
        embeddings=served.embeddings,
        inputs=tuple(input_specs(served.features, served.embeddings)),
        outputs=tuple(outputs),
        files=files,
    )
    card = render_card(experiment, opened, arm, snapshot, description, compute_figures)
    workspace.write(CARD_FILE, card.encode())
    # Last, because its existence says that the export is complete.
    workspace.write(DESCRIPTION_FILE, (description.model_dump_json(indent=2) + "\n").encode())
    return description


def capture(served: ServedModel) -> ExportedProgram:
    """Captures the graph of a served model, for at least 1 example, and any number of values and events."""
    tensors = tuple(_examples(served.features, served.embeddings, size=5, longest=3))
    free = tuple({0: Dim.DYNAMIC} for _ in tensors)
    # By default torch.export specializes on a size of 1; this captures a graph for all sizes.
    sizes_alike = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with sizes_alike, torch.no_grad():
        return torch.export.export(served, tensors, dynamic_shapes=(free,), strict=False)


def _examples(features: Sequence[Feature], embeddings: Mapping[str, int], size: int, longest: int) -> Iterator[Tensor]:
    """Yields the program's arguments for some examples, with 0 to ``longest`` values or events each."""
    lengths = torch.arange(size) % (longest + 1)
    feature_by_name = by_name(features)
    for spec in input_specs(features, {}):
        name, _, field = spec.name.partition(".")
        feature = feature_by_name.get(name)  # none for the tensor of all dense features
        most = feature.max_length if isinstance(feature, SequenceFeature) else longest
        kept = lengths.clamp(max=most)
        shape: list[int] = []
        for dim in spec.shape:
            if dim == "B":
                shape.append(size)
            elif isinstance(dim, str):  # the number of the feature's values or events
                shape.append(int(kept.sum()))
            else:
                shape.append(dim)
        if spec.dtype == "float32":
            numbers = torch.arange(torch.Size(shape).numel()).view(shape).sin()
            if len(shape) == 2:
                # Not the first row, because a batch of 1 checks present numbers.
                numbers[1::3, _may_miss(features, name)] = torch.nan
            yield numbers
        elif field == "starts":
            yield kept.cumsum(0) - kept
        elif spec.shape == ("B",):
            yield kept
        elif field == AGES:
            yield torch.arange(shape[0]).flip(0) ** 3
        else:
            yield torch.arange(shape[0]) % _table_rows(feature, field)
    for width in embeddings.values():
        embedding_BK = torch.arange(size * width).view(size, width).cos()
        embedding_BK[1::3] = torch.nan  # not the first, because a batch of 1 checks a present embedding
        yield embedding_BK


def _may_miss(features: Sequence[Feature], name: str) -> list[bool]:
    """Tells of each column of a tensor of numbers whether it may be missing.

    Args:
        name: of a sequence or a vector, or that of the tensor of all dense features.
    """
    numbers: list[DenseFeature | SequenceField] = []
    for feature in features:
        if isinstance(feature, SequenceFeature) and feature.name == name:
            numbers = [field for field in feature.fields if field.kind == "dense"]
        elif isinstance(feature, DenseFeature) and name == DENSE:
            numbers.append(feature)
        elif isinstance(feature, VectorFeature) and feature.name == name:
            return [True] * feature.width
    return [number.missing is not None for number in numbers]


def _table_rows(feature: Feature | None, field: str) -> int:
    """Returns the number of rows of the table that a feature, or a field of a sequence, is looked up in."""
    assert feature is not None and not isinstance(feature, DenseFeature | VectorFeature)
    if isinstance(feature, SequenceFeature):
        return next(column.rows for column in feature.fields if column.name == field)
    return feature.rows


# Examples and longest histories: the sizes 0, 1 and 2 that graphs specialize on, an odd size, and large sizes.
_SIZES = ((1, 0), (1, 1), (2, 1), (3, 0), (8, 40), (513, 3), (5_000, 2))
_PADDED = 1 << 25
"""Limit of the pairs of events in a check, because a captured graph pads every history to the maximum length."""


def _check(served: ServedModel, program: ExportedProgram, model: str, tolerance: float) -> None:
    """Raises RunError unless the captured graph and the model compute the same, at sizes other than the captured."""
    run = program.module()
    histories = [feature.max_length for feature in served.features if isinstance(feature, SequenceFeature)]
    largest = max(8, _PADDED // max(histories, default=1) ** 2)
    for wished_size, longest in _SIZES:
        size = min(wished_size, largest)
        tensors = tuple(_examples(served.features, served.embeddings, size, longest))
        try:
            with torch.no_grad():
                pairs = zip(run(*tensors), served(*tensors), strict=True)
                error = max(relative_difference(captured, expected) for captured, expected in pairs)
        except Exception as failure:  # a guard that torch.export has put into the graph
            raise RunError(
                f"models.{model}: the captured graph refuses {size} examples with histories of up to {longest} events: "
                f"{_first_line(failure)}"
            ) from failure
        if not error <= tolerance:  # not `>`, so that NaN is an error too
            raise RunError(
                f"models.{model}: for {size} examples with histories of up to {longest} events the captured graph is "
                f"{error:.2g} off the model: a component computes something else under torch.export"
            )


def _check_tools(form: Form) -> None:
    if form.compiled:
        try:
            get_cpp_compiler()
        except Exception as error:  # torch raises various types, depending on the compiler that it looked for
            raise ConfigError("a compiled export needs a C++ compiler: install g++, or give --no-compile") from error
    if form.onnx and find_spec("onnxscript") is None:
        raise ConfigError("an ONNX export needs the package onnxscript: pip install 'exfm[onnx]'")


def _column_types(experiment: Experiment, features: Sequence[Feature], event_time: str) -> dict[str, str]:
    """Returns the types of the columns that the features are read from, in the stream's first rows."""
    rows = _first_rows(experiment.source, experiment)
    plain = plain_rows(rows, experiment.schema)
    columns = list(source_columns(features))
    if event_time:
        columns.append(event_time)
    names = {}
    for column in columns:
        kind = rows.schema.field(column).type
        values = kind.value_type if is_list(kind) else kind
        if not is_usual(kind) and not holds_bytes(values):
            kind = plain.schema.field(column).type
        names[column] = type_name(kind)
    return names


def _first_rows(source: DataSource, experiment: Experiment) -> pa.RecordBatch:
    for window in stream_windows(source, experiment.config.stream.window):
        for rows in source.read(window):
            if rows.num_rows:
                return rows
    raise ConfigError("stream.source: there are no rows any more, of which to see the types of the columns")


def _write(
    workspace: Workspace, program: ExportedProgram, served: ServedModel, form: Form, folder: Path
) -> Iterator[tuple[str, ExportedFile]]:
    # torch warns of deprecations in its code, which a user cannot act on.
    with warnings.catch_warnings(action="ignore"):
        if form.compiled:
            torch._inductor.aoti_compile_and_package(program, package_path=str(folder / COMPILED_FILE))
        if form.onnx:
            to_onnx(program, served, folder / ONNX_FILE)
    program.example_inputs = None  # torch would pickle them, and `load` refuses pickles
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
    """Extracts the operation that torch could not translate from its long message."""
    causes = [line for line in str(error).splitlines() if line.startswith("<class ")]
    if not causes:
        return _first_line(error)
    # The last line names the innermost cause: "<class ...>: sentence. More sentences."
    return causes[-1].partition(": ")[2].partition(". ")[0]


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
