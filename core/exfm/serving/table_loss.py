"""Measures how much NE a model loses where its tables are stored with fewer bits.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.data.batch import ROW_WEIGHT, Batch
from exfm.evaluation.label_kinds import MOMENTS
from exfm.evaluation.metrics import Moments
from exfm.serving.predict import build_network, id_kinds, model_batches, read_chunks
from exfm.serving.stored_embeddings import StoredEmbeddings
from exfm.storage.snapshots import Snapshot
from exfm.supervision.store import Store


def ne_loss(
    experiment: Experiment,
    arm: Arm,
    store: Store,
    snapshot: Snapshot,
    weights: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
) -> dict[str, float]:
    """Measures the relative increase of NE, by task, on the rows of the snapshot's last window that have labels.

    Tasks whose labels are all alike there, or not known, have none.

    Args:
        experiment: whose stream still has the window's rows; without them no task has a figure.
        arm: the model.
        store: the run's folder.
        snapshot: of the model.
        weights: of the snapshot.
        stored: the same, with tables as they are stored.
    """
    sums = [_moments(experiment, arm, store, snapshot, each) for each in (weights, stored)]
    losses: dict[str, float] = {}
    for task, exact in sums[0].items():
        before, after = exact.ne, sums[1][task].ne
        if before is not None and after is not None:
            losses[task] = after / before - 1
    return losses


def _moments(
    experiment: Experiment, arm: Arm, store: Store, snapshot: Snapshot, weights: Mapping[str, Tensor]
) -> dict[str, Moments]:
    """Sums the losses of the predictions of the snapshot's last window, by task."""
    plan = experiment.config.parallel.build()
    network, parallel_model = build_network(experiment, arm, plan)
    parallel_model.load_state_dict(dict(weights))
    window = store.log.load("train", arm.name, snapshot.version).window
    embeddings = StoredEmbeddings(store, {} if network.inputs is None else network.inputs.embedding_dims)
    sums = {task: MOMENTS[label.kind]() for task, label in network.labels.items()}
    try:
        for chunk, _ in read_chunks(experiment, arm, plan, [window], id_kinds(store, snapshot, arm)):
            for batch in model_batches(network, chunk, arm, embeddings):
                with torch.no_grad():
                    predicted = network.predictions(network(batch.to(plan.device)))
                for task, values in predicted.items():
                    sums[task] += _of_task(batch, task, values.cpu(), type(sums[task]))
    finally:
        embeddings.close()
    return sums


def _of_task(batch: Batch, task: str, predicted: Tensor, kind: type[Moments]) -> Moments:
    label_B = batch.labels[task].numpy()
    labelled_B = ~np.isnan(label_B)
    weight = batch.weights.get(task, batch.weights.get(ROW_WEIGHT))
    weight_B = None if weight is None else weight.numpy()[labelled_B]
    labels = label_B[labelled_B]
    return kind.from_predictions(predicted.numpy()[labelled_B], labels > 0 if kind is Moments else labels, weight_B)
