"""A single pass of a FuxiCTR model over exported rows, in .venv-fuxictr: each batch is predicted, then trained on.

FuxiCTR's own loader shuffles and its evaluation follows an epoch, so the loop is ours; model, loss, optimizer, gradient
clipping and training step are FuxiCTR's.

Legend: N rows, L longest history.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything
from torch.utils.flop_counter import FlopCounterMode

_COUNTED = 64
_CLIP_NORM = 10.0  # of BaseModel.fit


def main() -> None:
    """Writes predictions with, in the file's metadata, the model's costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--zoo", type=Path, required=True)
    parser.add_argument("--model", choices=("WuKong", "DIN"), required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--end-us", type=int, help="train on the rows before this time only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    facts = json.loads(arguments.facts.read_text())
    table = pq.read_table(arguments.rows)
    if arguments.end_us is not None:
        before = table["event_time"].cast(pa.int64()).to_numpy() < arguments.end_us
        table = table.slice(0, int(before.sum()))
    seed_everything(arguments.seed)
    model = build(arguments, facts)
    predictions, seconds = one_pass(model, inputs(table, facts), table["batch"].to_numpy())
    few = {name: column[:_COUNTED] for name, column in inputs(table.slice(0, _COUNTED), facts).items()}
    costs = {
        "parameters": parameters(model),
        "flops_per_example": flops(model, few) / len(few[facts["task"]]),
        "train_examples_per_second": round(table.num_rows / seconds, 1),
        "versions": {name: version(name) for name in ("fuxictr", "torch", "numpy")},
    }
    kept = table.select(["example_id", "event_time"]).append_column("prediction", pa.array(predictions))
    kept = kept.append_column("label", table[facts["task"]])
    pq.write_table(kept.replace_schema_metadata({"costs": json.dumps(costs)}), arguments.out)


def build(arguments: argparse.Namespace, facts: dict[str, Any]) -> Any:
    """A model of the zoo with the settings given, and FuxiCTR's defaults."""
    attends = arguments.model == "DIN"
    file = arguments.zoo / "model_zoo" / arguments.model / "src" / f"{arguments.model}.py"
    spec = importlib.util.spec_from_file_location(arguments.model, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    settings = dict(arguments.settings)
    histories = [feature for feature in facts["features"] if feature["kind"] == "sequence"]
    if attends:
        settings["din_target_field"] = [feature["target"] for feature in histories]
        settings["din_sequence_field"] = [feature["name"] for feature in histories]
    model: Any = getattr(module, arguments.model)(
        feature_map(facts, attends),
        embedding_dim=facts["embedding_dim"],
        optimizer="adam",
        loss="binary_crossentropy",
        metrics=["AUC"],
        verbose=0,
        model_root=str(arguments.out.parent),
        **settings,
    )
    model._max_gradient_norm = _CLIP_NORM
    return model


def feature_map(facts: dict[str, Any], attends: bool) -> FeatureMap:
    """The result of FuxiCTR's preprocessing: row 0 of a table is padding, row i + 1 is our row i."""
    found = FeatureMap("exported", ".")
    found.labels = [facts["task"]]
    found.default_emb_dim = facts["embedding_dim"]
    owners: dict[str, str] = {}
    # Owners of a table come before those that share it.
    for feature in sorted(facts["features"], key=lambda feature: feature["kind"] == "sequence"):
        name, kind = feature["name"], feature["kind"]
        if kind == "dense":
            found.features[name] = {"source": "", "type": "numeric"}
            continue
        listed = kind != "categorical"
        spec: dict[str, Any] = {"source": "", "type": "sequence" if listed else "categorical"}
        spec |= {"vocab_size": feature["rows"] + 1, "padding_idx": 0}
        if listed and not (attends and kind == "sequence"):
            spec["feature_encoder"] = "layers.MaskedAveragePooling()"
        if feature["table"] in owners:
            spec["share_embedding"] = owners[feature["table"]]
        owners.setdefault(feature["table"], name)
        found.features[name] = spec
    found.num_fields = found.get_num_fields()
    return found


def inputs(table: pa.Table, facts: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Every column as a tensor, (N,) or (N, L), and the label."""
    columns = {facts["task"]: torch.from_numpy(table[facts["task"]].to_numpy().astype(np.float32))}
    for feature in facts["features"]:
        column = table[feature["name"]].combine_chunks()
        if feature["kind"] == "dense":
            columns[feature["name"]] = torch.from_numpy(column.to_numpy())
        elif feature["kind"] == "categorical":
            columns[feature["name"]] = torch.from_numpy(column.fill_null(-1).to_numpy() + 1)
        else:
            columns[feature["name"]] = torch.from_numpy(padded(column))
    return columns


def padded(lists: pa.ListArray) -> np.ndarray:
    """Lists of table rows as rows of a matrix (N, L), shifted by 1 and filled up with 0."""
    lengths = lists.value_lengths().to_numpy()
    matrix = np.zeros((len(lists), max(1, int(lengths.max(initial=0)))), np.int32)
    matrix[np.arange(matrix.shape[1]) < lengths[:, None]] = lists.flatten().to_numpy() + 1
    return matrix


def one_pass(model: Any, columns: dict[str, torch.Tensor], batch: np.ndarray) -> tuple[np.ndarray, float]:
    """Predictions of all rows, (N,), each made before the model trained on it, and the seconds that training took."""
    edges = np.flatnonzero(np.diff(batch, prepend=-1, append=-1))
    predictions, seconds = [], 0.0
    for start, end in pairwise(edges):
        rows = {name: column[start:end] for name, column in columns.items()}
        model.eval()
        with torch.no_grad():
            predictions.append(model(rows)["y_pred"].flatten().numpy())
        model.train()
        before = time.perf_counter()
        model.train_step(rows)
        seconds += time.perf_counter() - before
    return np.concatenate(predictions), seconds


def parameters(model: torch.nn.Module) -> dict[str, int]:
    """In embedding tables, and elsewhere."""
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    every = {id(parameter): parameter.numel() for parameter in model.parameters()}
    return {"dense": sum(every.values()) - sum(tables.values()), "sparse": sum(tables.values())}


def flops(model: torch.nn.Module, rows: dict[str, torch.Tensor]) -> int:
    """FLOPs of a forward pass, counted as exfm counts its own."""
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(rows)
    return int(counter.get_total_flops())


if __name__ == "__main__":
    main()
