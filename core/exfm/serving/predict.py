"""Predicts a stream with a snapshot and writes the predictions to a Parquet file, in constant memory.

Legend: B examples.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from exfm.bookkeeping.progress import Progress
from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.needed_columns import to_predict
from exfm.data.batch import Batch
from exfm.data.column_types import IdKind
from exfm.data.label_columns import held_by, prediction_fields
from exfm.data.source_errors import source_errors
from exfm.data.stream import Chunk, ChunkReader
from exfm.data.windows import WindowGrid, stream_windows, windows_with_events
from exfm.errors import ConfigError
from exfm.interfaces.data_source import TimeRange, Window, utc
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.mappings import add_prefix, map_values
from exfm.modeling.build import build_growth, build_model, parallelize
from exfm.modeling.ranking_model import RankingModel
from exfm.serving.find_snapshot import find_arm, find_snapshot, load_snapshot
from exfm.serving.stored_embeddings import StoredEmbeddings
from exfm.storage.aliases import LATEST
from exfm.storage.finite import check_snapshot, infinite_buffers
from exfm.storage.snapshots import Snapshot
from exfm.storage.workspace import Workspace
from exfm.supervision.row_files import Column, RowWriter, as_columns
from exfm.supervision.store import Store, open_store

logger = logging.getLogger(__name__)


def predict(
    experiment: Experiment,
    model: str,
    out: str,
    on_progress: Callable[[Progress], None] = lambda _: None,
    at: str = LATEST,
    between: TimeRange | None = None,
) -> tuple[Snapshot, int]:
    """Predicts the stream's rows that a model sees, with a snapshot of the model.

    A model that reads its teacher's embedding of the example finds it in the run's committed supervision; other rows
    are predicted as rows of which the teacher has no embedding, and a warning counts them.

    The file has ``example_id``, ``event_time`` and ``prediction_TASK``, in the order of the stream: a probability or an
    expected value, or of a multiclass label a column ``prediction_TASK/CLASS`` per class. Its metadata name model,
    snapshot and watermark. It appears when it is complete.

    Args:
        experiment: from ``exfm.load_experiment``.
        model: a model's name; a control is called NAME.control.
        out: the file, any fsspec URL.
        on_progress: called after every chunk of rows.
        at: version, alias or time of the snapshot; the newest that is published by default.
        between: times of the rows to predict; the whole stream by default.

    Returns:
        The snapshot, and the number of predicted rows.

    Raises:
        ConfigError: there is no such model or no such snapshot of it, no time of the stream lies in ``between``, or a
            row breaks the schema.
        RunError: the snapshot is corrupt, or not finite.
    """
    arm = find_arm(experiment, model)
    name = out.rpartition("/")[2]
    if not name:
        raise ConfigError(f"--out: {out!r} is a folder; name the Parquet file, such as {out}predictions.parquet")
    folder = Workspace(out.removesuffix(name) or ".")
    if folder.fs.isdir(folder.path(name)):
        raise ConfigError(f"--out: {out!r} is a folder; name the Parquet file, such as {out}/predictions.parquet")
    # A sweep may have trained the model in the folder of another point.
    store = open_store(experiment).home(arm.name).store
    find = partial(find_snapshot, experiment, arm, store, at)
    find()  # fails before anything is built if there is no snapshot
    experiment = to_predict(experiment, arm)
    windows = _windows(experiment, between)
    plan = experiment.config.parallel.build()
    network, parallel_model = build_network(experiment, arm, plan)
    constants = infinite_buffers(network)
    growth = build_growth(arm, experiment.schema, experiment.config.seed)
    memory = parallel_model.state_dict()
    snapshot, weights = load_snapshot(find, partial(store.snapshots.load, into=memory.get, growth=growth))
    check_snapshot(snapshot, weights, constants, store.workspace.url)
    parallel_model.load_state_dict(growth.grow(weights))
    folder.sweep()
    writer = RowWriter(folder, name, _schema(network, arm, snapshot))
    embeddings = StoredEmbeddings(store, {} if network.inputs is None else network.inputs.embedding_dims)
    rows = 0
    try:
        for chunk, progress in read_chunks(experiment, arm, plan, windows, id_kinds(store, snapshot, arm)):
            batches = [_predict_batch(network, batch, plan) for batch in model_batches(network, chunk, arm, embeddings)]
            if batches:
                # A row group per chunk: row groups of single batches would make a large footer.
                columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
                writer.append(columns)
                rows += len(columns["example_id"])
            on_progress(progress)
    except BaseException:  # an interrupt too must leave no unfinished file
        writer.discard()
        raise
    finally:
        embeddings.close()
    writer.close()
    for teacher, missing in embeddings.missing.items():
        if missing:
            logger.warning(
                "%s: of %d of %d rows the run has no embedding of %s; they are predicted as misses",
                *(model, missing, rows, teacher),
            )
    return snapshot, rows


def build_network(experiment: Experiment, arm: Arm, plan: ParallelPlan) -> tuple[RankingModel, ParallelModel]:
    """Builds a model for predictions, as a plan places it, before its weights are loaded."""
    with torch.random.fork_rng(devices=[]):
        network = build_model(arm, experiment.schema)
        parallel_model = parallelize(plan, network, arm)
    return network.eval(), parallel_model


def _schema(network: RankingModel, arm: Arm, snapshot: Snapshot) -> pa.Schema:
    fields = {"example_id": pa.int64(), "event_time": pa.timestamp("us", "UTC")}
    about = {"model": arm.name, "snapshot": str(snapshot.version), "watermark_us": str(snapshot.watermark_us)}
    fields |= prediction_fields(network.labels)
    about |= {f"kind.{task}": held_by(label) for task, label in network.labels.items()}
    return pa.schema(fields, metadata=add_prefix("exfm.", about))


def id_kinds(store: Store, snapshot: Snapshot, arm: Arm) -> dict[str, IdKind]:
    """Returns the kinds of values in the columns of ids that the model was trained on."""
    kinds: dict[str, IdKind] = store.log.load("train", arm.name, snapshot.version).counters.get("id_kinds", {})
    return kinds


def _windows(experiment: Experiment, between: TimeRange | None) -> list[Window]:
    """Returns the windows of the stream, cut to a range of times."""
    length = experiment.config.stream.window
    with source_errors():
        stream = experiment.source.time_range()
        if between is None:
            return list(stream_windows(experiment.source, length))
    span = TimeRange(max(stream.start_us, between.start_us), min(stream.end_us, between.end_us))
    if span.start_us >= span.end_us:
        covered = f"from {utc(stream.start_us)} to {utc(stream.end_us)}"
        raise ConfigError(f"--from and --to: the stream has no rows then; it goes {covered}")
    windows = windows_with_events(experiment.source, WindowGrid.around(span.start_us, length), span)
    cut = []
    for window in windows:
        start_us, end_us = max(window.start_us, span.start_us), min(window.end_us, span.end_us)
        cut.append(replace(window, start_us=start_us, end_us=end_us))
    return cut


def read_chunks(
    experiment: Experiment, arm: Arm, plan: ParallelPlan, windows: list[Window], kinds: dict[str, IdKind]
) -> Iterator[tuple[Chunk, Progress]]:
    """Yields the rows of windows that a model may see, with the progress."""
    stream = experiment.config.stream
    where = {arm.name: arm.config.where}
    # In training a repeated example is an error; rows to predict may repeat an example.
    reader = ChunkReader(experiment.source, experiment.schema, stream, where, plan.shard, unique=False)
    reader.id_kinds = kinds
    for window in windows:
        for chunk in reader.read(window):
            yield chunk, Progress(window, len(windows), chunk.batch.size, {})
    reader.warn_left_out()


def model_batches(network: RankingModel, chunk: Chunk, arm: Arm, embeddings: StoredEmbeddings) -> Iterator[Batch]:
    """Yields the rows of a chunk that a model sees, with its features alone."""
    selected = chunk.rows[arm.name]
    seen = network.narrow(chunk.batch)
    if selected is not None:
        seen = seen.select(selected)
    seen = embeddings.add(seen)
    count = math.ceil(seen.size / arm.config.batch_size)
    if count:
        # Nearly equal batches, instead of a small batch at the end.
        for rows in torch.arange(seen.size).tensor_split(count):
            yield seen.slice(int(rows[0]), int(rows[-1]) + 1)


def _predict_batch(network: RankingModel, batch: Batch, plan: ParallelPlan) -> dict[str, Column]:
    with torch.no_grad():
        predicted = map_values(Tensor.cpu, network.predictions(network(batch.to(plan.device))))
    return {"example_id": batch.example_id.numpy(), "event_time": batch.event_time_us.numpy(), **as_columns(predicted)}
