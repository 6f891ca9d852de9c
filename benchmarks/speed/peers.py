"""A peer's training speed over a file of rows.py, as a line of JSON; runs in .venv-peers.

    .venv-peers/bin/python benchmarks/speed/peers.py --library fuxictr --model wukong --rows FILE --table-rows 100000

Each library trains by its own training step: FuxiCTR's ``train_step`` over batches cut beforehand, DeepCTR-Torch's
``fit``, torch-rechub's ``train_one_epoch`` with its data loader. All rows lie in memory and reading them is not timed,
which is in the peers' favour. Adam everywhere, a single pass in order.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rows import FEATURES

NAMES = [f"f{number}" for number in range(FEATURES)]
_WARM_BATCHES = 2
Settings = dict[str, Any]
Train = Callable[[int, int], None]


def fuxictr(model: str, ids_NF: np.ndarray, labels: np.ndarray, table_rows: int, settings: Settings) -> Train:
    """FuxiCTR's WuKong or DeepFM, from the wheel or the model zoo beside it."""
    from fuxictr.features import FeatureMap

    found = FeatureMap("speed", ".")
    found.labels, found.default_emb_dim = ["click"], settings["dim"]
    for name in NAMES:
        found.features[name] = {"source": "", "type": "categorical", "vocab_size": table_rows}
    found.num_fields = found.get_num_fields()
    folder, name, fields = ("DeepFM/DeepFM_torch", "DeepFM", {"hidden_units": settings["hidden"]})
    if model == "wukong":
        folder, name, fields = ("WuKong", "WuKong", _wukong_fields(settings))
    file = Path(sys.prefix) / "zoo" / "model_zoo" / folder / "src" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = getattr(module, name)(
        found, embedding_dim=settings["dim"], optimizer="adam", loss="binary_crossentropy", metrics=["AUC"],
        verbose=0, model_root=os.devnull, learning_rate=1e-3, **fields,
    )  # fmt: skip
    network._max_gradient_norm = 10.0
    network.train()
    columns = {name: torch.from_numpy(np.ascontiguousarray(ids_NF[:, i])) for i, name in enumerate(NAMES)}
    columns["click"] = torch.from_numpy(labels)
    size = settings["batch_size"]

    def train(start: int, end: int) -> None:
        for first in range(start, end, size):
            rows = slice(first, min(first + size, end))
            network.train_step({key: column[rows] for key, column in columns.items()})

    return train


def _wukong_fields(settings: Settings) -> Settings:
    return {
        "num_wukong_layers": settings["layers"],
        "lcb_features": settings["lcb"],
        "fmb_features": settings["fmb"],
        "fmp_rank_k": settings["k"],
        "fmb_mlp_units": settings["fmb_hidden"],
        "mlp_hidden_units": settings["hidden"],
        "mlp_batch_norm": False,
    }


def deepctr_torch(model: str, ids_NF: np.ndarray, labels: np.ndarray, table_rows: int, settings: Settings) -> Train:
    """DeepCTR-Torch's DeepFM."""
    from deepctr_torch.inputs import SparseFeat
    from deepctr_torch.models import DeepFM

    assert model == "deepfm"
    features = [SparseFeat(name, table_rows, embedding_dim=settings["dim"]) for name in NAMES]
    network = DeepFM(
        features, features, dnn_hidden_units=settings["hidden"], l2_reg_linear=0, l2_reg_embedding=0, device="cpu"
    )
    network.compile(torch.optim.Adam(network.parameters(), 1e-3), "binary_crossentropy", metrics=[])

    def train(start: int, end: int) -> None:
        inputs = {name: ids_NF[start:end, i] for i, name in enumerate(NAMES)}
        network.fit(inputs, labels[start:end], settings["batch_size"], epochs=1, verbose=0, shuffle=False)

    return train


def torch_rechub(model: str, ids_NF: np.ndarray, labels: np.ndarray, table_rows: int, settings: Settings) -> Train:
    """torch-rechub's DeepFM."""
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.ranking import DeepFM
    from torch_rechub.trainers import CTRTrainer
    from torch_rechub.utils.data import TorchDataset

    assert model == "deepfm"
    features = [SparseFeature(name, table_rows, embed_dim=settings["dim"]) for name in NAMES]
    mlp = {"dims": settings["hidden"], "dropout": 0.0, "activation": "relu"}
    trainer = CTRTrainer(DeepFM(features, features, mlp), optimizer_params={"lr": 1e-3}, device="cpu")

    def train(start: int, end: int) -> None:
        inputs = {name: ids_NF[start:end, i] for i, name in enumerate(NAMES)}
        rows = TorchDataset(inputs, labels[start:end])
        trainer.train_one_epoch(torch.utils.data.DataLoader(rows, batch_size=settings["batch_size"]))

    return train


LIBRARIES = {"fuxictr": fuxictr, "deepctr_torch": deepctr_torch, "torch_rechub": torch_rechub}
DISTRIBUTIONS = {"fuxictr": "fuxictr", "deepctr_torch": "deepctr-torch", "torch_rechub": "torch-rechub"}


def main() -> None:
    """Trains once through the file, the first batches to warm up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=sorted(LIBRARIES), required=True)
    parser.add_argument("--model", choices=("wukong", "deepfm"), required=True)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table-rows", type=int, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    table = pq.read_table(arguments.rows)
    ids_NF = np.stack([table[name].to_numpy() for name in NAMES], axis=1)
    labels = table["click"].to_numpy().astype(np.float32)
    warm = _WARM_BATCHES * arguments.settings["batch_size"]
    with contextlib.redirect_stdout(sys.stderr):
        train = LIBRARIES[arguments.library](arguments.model, ids_NF, labels, arguments.table_rows, arguments.settings)
        train(0, warm)
        started, cpu_started = time.perf_counter(), time.process_time()
        train(warm, len(labels))
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    rows = len(labels) - warm
    told = {"examples_per_second": rows / seconds, "examples_per_cpu_second": rows / cpu_seconds}
    print(json.dumps(told | {"version": version(DISTRIBUTIONS[arguments.library])}))


if __name__ == "__main__":
    main()
