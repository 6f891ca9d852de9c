"""A stream as a Parquet file that exfm and FuxiCTR read alike: `rows.parquet`, and its contents, `rows.json`.

Ids are table rows, hashed and cut as exfm does. Dense features are transformed and standardised by the rows that no
figure covers. Of a history only its item ids are kept, as FuxiCTR's DIN attends to fields that have a counterpart in
the candidate. `batch` numbers the batches that exfm makes of these rows, so that both train on the same ones.

Legend: B rows, F dense features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray
from streams import first_scored, rows_by_window

import exfm
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader

_CLIP = 10.0
"""Standardised features are cut here, as exfm cuts its own."""


@dataclass(frozen=True)
class Exported:
    """An export that is complete, in its folder."""

    folder: Path

    @property
    def facts(self) -> dict[str, Any]:
        """The contents of rows.json."""
        facts: dict[str, Any] = json.loads((self.folder / "rows.json").read_text())
        return facts

    @property
    def rows(self) -> Path:
        """The file of rows."""
        return self.folder / "rows.parquet"

    @property
    def experiment(self) -> Path:
        """An exfm experiment over it."""
        return self.folder / "experiment.yaml"


def export(experiment: exfm.Experiment, folder: Path) -> Exported:
    """Writes the stream of an experiment whose model is ``fm``, unless the folder has it; rows.json is written last."""
    made = Exported(folder)
    if (folder / "rows.json").exists():
        return made
    folder.mkdir(parents=True, exist_ok=True)
    windows = rows_by_window(experiment)
    skip = experiment.config.evaluation.skip
    scored_from_us = first_scored(windows, skip)
    early = [(window, count) for window, count in windows if window.start_us < scored_from_us]
    columns = _columns(experiment.schema)
    mean_F, scale_F = _statistics(experiment, [window for window, _ in early])
    with pq.ParquetWriter(made.rows, _arrow_schema(experiment, columns)) as writer:
        first_batch = 0
        for window, _ in windows:
            for batch in _batches(experiment, window):
                number_B = first_batch + batch_numbers(batch.size, experiment.config.models["fm"].batch_size)
                first_batch = int(number_B[-1]) + 1
                dense_BF = ((batch.dense_BF.numpy() - mean_F) * scale_F).clip(-_CLIP, _CLIP).astype(np.float32)
                arrays = _arrays(experiment.schema, columns, batch, dense_BF)
                writer.write_table(pa.table({**arrays, "batch": number_B}, schema=writer.schema))
    made.experiment.write_text(yaml.safe_dump(_experiment(experiment, columns, made.rows), sort_keys=False))
    facts = {
        "task": experiment.schema.labels[0].name,
        "embedding_dim": experiment.config.models["fm"].embedding_dim,
        "rows": sum(count for _, count in windows),
        "scored_from_us": scored_from_us,
        "tuned_from_us": first_scored(early, skip),
        "features": columns,
    }
    (folder / "rows.json").write_text(json.dumps(facts, indent=1))
    return made


def batch_numbers(rows: int, size: int) -> NDArray[np.int32]:
    """The batch of each row of a chunk, (rows,): as few batches of at most ``size`` as there can be, nearly equal."""
    parts = np.array_split(np.empty(rows), -(-rows // size))
    return np.repeat(np.arange(len(parts), dtype=np.int32), [part.size for part in parts])


def _batches(experiment: exfm.Experiment, window: exfm.sources.Window) -> Iterator[Batch]:
    reader = ChunkReader(experiment.source, experiment.schema, experiment.config.stream, {}, exfm.sources.Shard())
    return (chunk.batch for chunk in reader.read(window))


def _columns(schema: exfm.schema.FeatureSchema) -> list[dict[str, Any]]:
    """The features of the export, as exfm's schema writes them; a sequence's ``target`` is the feature of its item."""
    candidates = {f.table_name: f.name for f in schema.features if isinstance(f, exfm.schema.CategoricalFeature)}
    columns: list[dict[str, Any]] = []
    for feature in schema.features:
        if isinstance(feature, exfm.schema.DenseFeature):
            columns.append({"name": feature.name, "kind": "dense"})
        elif isinstance(feature, exfm.schema.SequenceFeature):
            ids = [field for field in feature.fields if field.kind == "categorical"]
            place = next(i for i, field in enumerate(ids) if feature.table_name(field) in candidates)
            table = feature.table_name(ids[place])
            shape = {"rows": ids[place].rows, "table": table, "max_length": feature.max_length}
            columns.append({"name": feature.name, "kind": "sequence", **shape, "field": place})
            columns[-1]["target"] = candidates[table]
        elif isinstance(feature, exfm.schema.CategoricalFeature | exfm.schema.MultiValuedFeature):
            shape = {"rows": feature.rows, "table": feature.table_name}
            columns.append({"name": feature.name, "kind": feature.kind, **shape})
        else:
            raise ValueError(f"{feature.name}: other libraries read no feature of kind {feature.kind}")
    return columns


def _statistics(
    experiment: exfm.Experiment, windows: Sequence[exfm.sources.Window]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and reciprocal standard deviation of every dense feature, (F,) each, over some windows."""
    dense = [batch.dense_BF.double().numpy() for window in windows for batch in _batches(experiment, window)]
    values_BF = np.concatenate(dense)
    return values_BF.mean(0), 1 / np.maximum(values_BF.std(0), 1e-3)


def _arrow_schema(experiment: exfm.Experiment, columns: Sequence[dict[str, Any]]) -> pa.Schema:
    ids, lists = pa.int32(), pa.list_(pa.int32())
    types = {"dense": pa.float32(), "categorical": ids, "multi_valued": lists, "sequence": lists}
    fixed = {"example_id": pa.int64(), "event_time": pa.timestamp("us"), "group": pa.int64()}
    label = {experiment.schema.labels[0].name: pa.int8()}
    named = {column["name"]: types[column["kind"]] for column in columns}
    return pa.schema([*(fixed | label | named).items(), ("batch", ids)])


def _arrays(
    schema: exfm.schema.FeatureSchema, columns: Sequence[dict[str, Any]], batch: Batch, dense_BF: NDArray[np.float32]
) -> dict[str, Any]:
    task = schema.labels[0].name
    arrays: dict[str, Any] = {
        "example_id": batch.example_id.numpy(),
        "event_time": pa.array(batch.event_time_us.numpy()).view(pa.timestamp("us")),
        "group": batch.group.numpy(),
        task: batch.labels[task].numpy().astype(np.int8),
    }
    dense = iter(dense_BF.T)
    for column in columns:
        if column["kind"] == "dense":
            arrays[column["name"]] = next(dense)
        elif column["kind"] == "sequence":
            history = batch.sequences[column["name"]]
            arrays[column["name"]] = _lists(history.offsets, history.ids_EC[:, column["field"]])
        else:
            found = batch.sparse[column["name"]]
            lists = _lists(found.offsets(), found.values())
            # Of a categorical feature, a list of an id or, where it is missing, of none.
            arrays[column["name"]] = lists if column["kind"] == "multi_valued" else _singles(lists)
    return arrays


def _lists(offsets: Any, values: Any) -> pa.ListArray:
    to_int32 = (part.numpy().astype(np.int32) for part in (offsets, values))
    return pa.ListArray.from_arrays(*(pa.array(part) for part in to_int32))


def _singles(lists: pa.ListArray) -> pa.Array:
    present_B = lists.value_lengths().to_numpy() > 0
    ids_B = np.zeros(len(lists), np.int32)
    ids_B[present_B] = lists.flatten().to_numpy()
    return pa.array(ids_B, mask=~present_B)


def _experiment(experiment: exfm.Experiment, columns: Sequence[dict[str, Any]], rows: Path) -> dict[str, Any]:
    """An exfm experiment over the exported rows."""
    given = experiment.as_dict()
    features: list[dict[str, Any]] = []
    for column in columns:
        feature: dict[str, Any] = {key: column[key] for key in ("name", "kind", "rows", "table") if key in column}
        if column["kind"] == "sequence":
            table = {key: feature.pop(key) for key in ("rows", "table")}
            field = {"name": "item", "column": column["name"], **table, "ids": "row"}
            feature |= {"max_length": column["max_length"], "fields": [field]}
        elif column["kind"] != "dense":
            feature["ids"] = "row"
        features.append(feature)
    labels = [{"name": experiment.schema.labels[0].name}]
    source = {"name": "parquet", "path": str(rows), "group": "group", "labels": labels, "features": features}
    model = {key: given["models"]["fm"][key] for key in ("backbone", "embedding_dim", "batch_size")}
    return {
        "name": f"{given['name']}-exported",
        "stream": {key: given["stream"][key] for key in ("window", "chunk_rows")} | {"source": source},
        "evaluation": {"skip": given["evaluation"]["skip"]},
        "models": {"fm": model},
        "parallel": given["parallel"],
    }
