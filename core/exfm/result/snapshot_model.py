"""Loads a snapshot of a model as an ordinary module that encodes rows by itself.

Legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn

from exfm.config.loading import Experiment
from exfm.data.batch import Batch
from exfm.data.decode import label_values
from exfm.interfaces.schema import Label
from exfm.modeling.build import build_growth
from exfm.modeling.ranking_model import RankingModel
from exfm.serving.description import Description
from exfm.serving.export import describe
from exfm.serving.find_snapshot import find_arm, find_snapshot, load_snapshot
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.served_model import ServedModel
from exfm.storage.aliases import LATEST
from exfm.storage.finite import check_snapshot
from exfm.supervision.store import open_store


class SnapshotModel(nn.Module):
    """A snapshot of a model in evaluation mode, with the encoder of its features.

    It is made of plain torch modules, tables included. Its parameters need no gradient at first: ``requires_grad_()``
    changes that, and ``loss.backward()`` then reaches the tables too.

    Args:
        served: the served layers.
        description: the model's columns and features.
        labels: the labels that it predicts.

    Attributes:
        description: the model's columns by type, its features and its tasks.
        snapshot: the version of the snapshot.

    Example::

        model = exfm.open_run("runs/my").models["vm"].load()
        predictions = model.predict(rows)          # or model(model.encode(rows)), for tensors with gradients
    """

    def __init__(self, served: ServedModel, description: Description, labels: Sequence[Label]) -> None:
        super().__init__()
        self.served = served
        self.description = description
        self.snapshot = description.snapshot
        self._labels = tuple(labels)
        self._rows = LoadedModel(description, served)
        self.eval()

    @property
    def network(self) -> RankingModel:
        """The features' tables and tokens (``featurizer``), ``encoders``, ``backbone`` and ``heads``."""
        return self.served.model

    def encode(self, rows: Any) -> Batch:
        """Encodes rows as a batch of tensors, with the labels of the model's tasks where the rows have their columns.

        Args:
            rows: a pandas or any other Arrow data frame, a pyarrow table or record batch, or a mapping per row.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        table = _record_batch(rows)
        batch = self.served.batch(self._rows.tensors(table))
        if not isinstance(table, pa.RecordBatch):
            return batch
        labels: dict[str, Tensor] = {}
        for label in self._labels:
            if label.source_column in table.schema.names:
                labels[label.name] = torch.from_numpy(label_values(table, label))
        return replace(batch, labels=labels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Predicts a batch: a probability or an expected value (B,) by task, or a probability per class (B, C)."""
        return self.network.predictions(self.network(batch))

    def predict(self, rows: Any) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts rows, without gradients; see ``encode`` and ``forward``.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        return self._rows.run(self._rows.tensors(_record_batch(rows)))

    def extra_repr(self) -> str:
        """Names the snapshot in the module's repr."""
        until = f"{self.description.watermark:%Y-%m-%d %H:%M}"
        return f"{self.description.model}, snapshot {self.snapshot}, trained until {until}"


def load_model(experiment: Experiment, model: str, at: str = LATEST) -> SnapshotModel:
    """Loads a snapshot of a model of a run.

    Args:
        experiment: from ``exfm.load_experiment``.
        model: a model's name; a control is called NAME.control.
        at: version, alias or time of the snapshot; the newest that is published by default.

    Raises:
        ConfigError: there is no such model, or no such snapshot of it.
        RunError: the snapshot is corrupt, or not finite.
    """
    arm = find_arm(experiment, model)
    # A sweep may have trained the model in the folder of another point.
    store = open_store(experiment).home(arm.name).store
    snapshot, weights = load_snapshot(partial(find_snapshot, experiment, arm, store, at), store.snapshots.load_whole)
    grown = build_growth(arm, experiment.schema, experiment.config.seed).grow_whole(weights)
    served = ServedModel(arm, experiment.schema, grown)
    check_snapshot(snapshot, weights, served.constants, store.workspace.url)
    description = describe(experiment, arm, snapshot, served, graph="")
    labels = [label for label in experiment.schema.labels if label.name in arm.tasks]
    return SnapshotModel(served, description, labels)


def _record_batch(rows: Any) -> pa.RecordBatch | Sequence[Mapping[str, Any]]:
    """Returns a data frame or table as a record batch; rows of any other form as they are."""
    if isinstance(rows, pa.RecordBatch) or not hasattr(rows, "__arrow_c_stream__"):
        return rows
    # Combined, so that there is a single batch; a table without rows has none.
    table = pa.table(rows).combine_chunks()
    batches = table.to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
