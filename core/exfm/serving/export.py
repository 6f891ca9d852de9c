"""Exports the served layers of a snapshot: programs, their weights, and a description of their inputs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import torch
from torch._inductor.cpp_builder import get_cpp_compiler
from torch.export import ExportedProgram

from exfm import __version__
from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.data.column_types import is_list, is_usual, plain_rows
from exfm.data.label_columns import held_by
from exfm.data.windows import stream_windows
from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import Feature
from exfm.mappings import map_values
from exfm.modeling.build import build_growth
from exfm.redaction import without_credentials
from exfm.serving.capture import capture, check_graph, first_line, graph_digest
from exfm.serving.card import render_card
from exfm.serving.description import (
    CARD_FILE,
    DESCRIPTION_FILE,
    PROGRAM_FILE,
    PROGRAM_FILES,
    REQUEST_FILE,
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
from exfm.serving.folder import read_description, remove_other_files, weights_before
from exfm.serving.quantised_tables import QuantisedTable, TableFormat, quantise_tables
from exfm.serving.served_model import ServedModel, pool_by_adding
from exfm.serving.table_loss import ne_loss
from exfm.serving.weights import joint_weights, write_weights
from exfm.serving.write_programs import write_programs
from exfm.sources.ids import holds_bytes
from exfm.storage.aliases import LATEST
from exfm.storage.finite import check_snapshot
from exfm.storage.snapshots import Snapshot
from exfm.storage.temporary import spool_folder, temporary_folder
from exfm.storage.workspace import Workspace
from exfm.supervision.store import open_store


@dataclass(frozen=True)
class Form:
    """Selects the forms in which a model is written, besides the program that ``torch.export`` captures.

    Attributes:
        compiled: writes machine code for machines like this (AOTInductor), which needs a C++ compiler.
        onnx: writes an ONNX model.
        requests: writes a further program, which looks up and encodes the context of a request once for all candidates.
        tables: how the rows of embedding tables are stored.
    """

    compiled: bool = True
    onnx: bool = False
    requests: bool = False
    tables: TableFormat = "fp32"


def export(
    experiment: Experiment,
    model: str,
    out: str,
    form: Form = Form(),
    at: str = LATEST,
    *,
    compute_figures: bool = True,
    weights_only: bool = False,
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
        weights_only: whether ``out`` holds an export of the model, whose programs stay and get the snapshot's weights.

    Raises:
        ConfigError: there is no such model or no such snapshot of it, a tool that ``form`` needs is missing, or the
            programs in ``out`` compute something else than the model.
        RunError: the snapshot is corrupt or not finite, or the model cannot be captured or has no ONNX form.
    """
    arm = find_arm(experiment, model)
    workspace = Workspace(out)
    before = read_description(workspace) if weights_only else None
    if before is None:
        _check_tools(form)
    # A process that has read the inputs.json before may be about to read its weights.
    kept = weights_before(workspace) if before is None else before.weights_file
    # A sweep may have trained the model in the folder of another point.
    opened = open_store(experiment)
    store = opened.home(arm.name).store
    snapshot, weights = load_snapshot(partial(find_snapshot, experiment, arm, store, at), store.snapshots.load_whole)
    grown = build_growth(arm, experiment.schema, experiment.config.seed).grow_whole(weights)
    table_format = form.tables if before is None else before.tables
    quantised: dict[str, QuantisedTable] = {}
    exact = grown
    if table_format == "int8":
        quantised = quantise_tables(grown)
        grown = {**grown, **map_values(QuantisedTable.dequantise, quantised)}
    served = ServedModel(arm, experiment.schema, grown)
    check_snapshot(snapshot, weights, served.constants, store.workspace.url)
    stored = ServedModel(arm, experiment.schema, grown, quantised=quantised) if quantised else served
    programs = {PROGRAM_FILE: _capture_checked(arm, stored, served)}
    request_inputs: tuple[TensorSpec, ...] = ()
    if form.requests if before is None else before.request_inputs:
        request = ServedModel(arm, experiment.schema, grown, requests=True, quantised=quantised)
        programs[REQUEST_FILE] = _capture_checked(arm, request, served)
        request_inputs = tuple(input_specs(request.features, request.embeddings, _checked_shared(arm, request)))
    for_onnx = None
    if form.onnx and before is None:
        for_onnx = _capture_checked(arm, ServedModel(arm, experiment.schema, grown, pool_by_adding), served)
    described = describe(experiment, arm, snapshot, served, graph_digest([*programs.values()]))
    described = described.model_copy(update={"request_inputs": request_inputs, "tables": table_format})
    if before is not None:
        _check_same_programs(out, before, described)
    workspace.sweep()
    tensors = joint_weights([*programs.values()])
    if before is None:
        with temporary_folder(spool_folder()) as folder:
            write_programs(programs, for_onnx, served, form.compiled, folder)
            files = dict(_send(folder, workspace))
    else:
        files = {name: file for name, file in before.files.items() if name in PROGRAM_FILES}
    record = write_weights(workspace, tensors)
    files[record.path] = ExportedFile(bytes=record.bytes, xxh3=record.xxh3)
    losses = ne_loss(experiment, arm, store, snapshot, exact, grown) if quantised else {}
    description = described.model_copy(update={"files": files, "tables_ne_loss": losses})
    card = render_card(experiment, opened, arm, snapshot, description, compute_figures)
    workspace.write(CARD_FILE, card.encode())
    # Last, because its existence says that the export is complete.
    workspace.write(DESCRIPTION_FILE, (description.model_dump_json(indent=2) + "\n").encode())
    remove_other_files(workspace, description, kept)
    return description


def _capture_checked(arm: Arm, model: ServedModel, served: ServedModel) -> ExportedProgram:
    """Captures the graph of a model, and checks that it computes the same as the served model.

    Raises:
        RunError: it cannot be captured, or computes something else.
    """
    try:
        program = capture(model)
    except Exception as error:  # torch raises many types for code of plugins that it cannot capture
        raise RunError(f"models.{arm.base}: torch.export cannot capture it: {first_line(error)}") from error
    # Probabilities: fp32 is summed in another order; bf16 has 8 bits, a step of 4e-3 below 1.
    check_graph(model, served, program, arm.base, 1e-5 if arm.config.precision == "fp32" else 1e-2)
    return program


def _checked_shared(arm: Arm, request: ServedModel) -> frozenset[str]:
    if not request.shared:
        raise ConfigError(
            f"models.{arm.base}: no feature can be shared by the candidates of a request: it has numbers, vectors, or "
            "histories that are compared with the candidate; export without --requests"
        )
    return request.shared


def describe(experiment: Experiment, arm: Arm, snapshot: Snapshot, served: ServedModel, graph: str) -> Description:
    """Describes the inputs and outputs of a served model, as an export whose files are not written yet."""
    event_time = experiment.schema.event_time if needs_event_time(served.features) else ""
    columns = _column_types(experiment, served.features, event_time)
    columns |= {embedding_input(teacher): "list of double" for teacher in served.embeddings}
    outputs: list[TensorSpec] = []
    for task, label in served.model.labels.items():
        shape: tuple[int | str, ...] = ("B", label.width) if label.kind == "multiclass" else ("B",)
        outputs.append(TensorSpec(name=task, dtype="float32", shape=shape, holds=held_by(label)))
    return Description(
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
        graph=graph,
        files={},
    )


def _check_same_programs(out: str, before: Description, now: Description) -> None:
    """Raises ConfigError unless an export has the graph, features and columns of a model."""
    where, remedy = f"{without_credentials(out)}/{DESCRIPTION_FILE}", "export without --weights-only"
    if before.model != now.model:
        raise ConfigError(f"{where}: it holds an export of {before.model!r}, not of {now.model!r}; {remedy}")
    if before.versions["torch"] != now.versions["torch"]:
        versions = f"torch {before.versions['torch']}, and this is {now.versions['torch']}"
        raise ConfigError(f"{where}: its programs were written with {versions}; {remedy}")
    for name in ("graph", "features", "columns", "inputs", "request_inputs", "outputs", "hashing"):
        if getattr(before, name) != getattr(now, name):
            raise ConfigError(f"{where}: the model has other {name} now than its programs; {remedy}")


def _check_tools(form: Form) -> None:
    if form.compiled:
        try:
            get_cpp_compiler()
        except Exception as error:  # torch raises various types, depending on the compiler that it looked for
            raise ConfigError("a compiled export needs a C++ compiler: install g++, or give --no-compile") from error
    if form.onnx and form.tables != "fp32":
        raise ConfigError(f"--onnx: an ONNX model has tables in fp32; given: --tables {form.tables}; leave out either")
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


def _send(folder: Path, workspace: Workspace) -> Iterator[tuple[str, ExportedFile]]:
    """Copies the files of a local folder to the export's folder; yields the name and the checksum of each."""
    for file in sorted(folder.iterdir()):
        with workspace.writing(file.name) as target, file.open("rb") as written:
            shutil.copyfileobj(written, target, 1 << 20)
        record = target.record()
        yield file.name, ExportedFile(bytes=record.bytes, xxh3=record.xxh3)
