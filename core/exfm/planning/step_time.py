"""Estimates the seconds of a training step and of a window, their price, and the resource that limits them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from exfm.interfaces.layout import Cluster
from exfm.planning.cluster_plan import ClusterPlan, ModelPlan, state_numbers
from exfm.planning.rates import Rates

_FLOAT = 4  # bytes of a float32
_BACKWARD = 2  # passes: gradients of inputs, and of weights
_HOUR_S, _DAY_S = 3600, 86_400


@dataclass(frozen=True)
class StepTime:
    """Holds the seconds that each resource of a process works in a step of a model.

    Attributes:
        batch: examples of the step in all processes.
        seconds: by resource: ``matrix products``, ``memory``, ``links`` and ``network``.
    """

    batch: int
    seconds: Mapping[str, float]

    @property
    def least(self) -> float:
        """Returns the seconds of a step whose resources all work at once."""
        return max(self.seconds.values())

    @property
    def most(self) -> float:
        """Returns the seconds of a step whose resources work in turn."""
        return sum(self.seconds.values())

    @property
    def limit(self) -> str:
        """Returns the resource that works longest."""
        return max(self.seconds, key=lambda resource: self.seconds[resource])


def step_time(model: ModelPlan, cluster: Cluster, rates: Rates) -> StepTime:
    """Estimates a step of a model: work of the busiest process, divided by its rates.

    Terms that transfer adds to a loss, Python and the reading of the stream are left out.
    """
    forward = 1 + model.needs.arm.config.activation_checkpointing  # blocks run forward twice with it
    sent = {"links": 0.0, "network": 0.0}
    for collective in model.collectives:
        # A collective of more processes than a machine has is as slow as the network between machines.
        resource = "links" if collective.processes <= cluster.per_machine else "network"
        sent[resource] += float(np.max(collective.sent_bytes)) / collective.interval
    seconds = {
        "matrix products": model.flops * (forward + _BACKWARD) / rates.flops,
        "memory": memory_traffic(model) / rates.memory,
        "links": sent["links"] / rates.link,
        "network": sent["network"] / rates.network,
    }
    return StepTime(model.needs.batch, seconds)


def memory_traffic(model: ModelPlan) -> float:
    """Counts the bytes that the memory of a process reads and writes in a step."""
    needs = model.needs
    optimizer = needs.arm.config.optimizer
    bytes_ = 0.0
    for use in needs.workload.tables:
        row = use.width * _FLOAT
        state = state_numbers(optimizer.tables, use.width) * _FLOAT
        # Forward a row is read; backward it and its optimizer state are read and written.
        bytes_ += use.ids * (3 * row + 2 * state)
    # Activations are written forward and read backward.
    bytes_ += 2 * float(np.max(model.memory["activations"]))
    # The optimizer reads and writes weights and their state, and reads gradients.
    dense = 2 * (model.memory["dense"] + model.memory["dense_optimizer"]) + model.memory["gradients"]
    return bytes_ + float(np.max(dense)) / optimizer.dense.accumulate


def time_as_dict(planned: ClusterPlan, rates: Rates, window_s: float, window_rows: int | None) -> dict[str, Any]:
    """Describes the time and the price of a plan, as ``exfm plan --json`` prints them.

    The models of a job take their steps in turn.

    Args:
        window_s: the seconds of stream in a window.
        window_rows: rows of a window, which each model reads; None where they are not known.
    """
    times = {name: step_time(model, planned.cluster, rates) for name, model in planned.models.items()}
    models: dict[str, Any] = {}
    for name, step in times.items():
        models[name] = {
            "seconds": dict(step.seconds),
            "step_s": [step.least, step.most],
            "examples_per_s": [step.batch / step.most, step.batch / step.least],
            "limit": step.limit,
        }
    # JSON has no infinity.
    numbers = {name: rate if rate != math.inf else None for name, rate in vars(rates).items()}
    described: dict[str, Any] = {"rates": numbers, "models": models, "window": None}
    if window_rows is not None:
        least, most = 0.0, 0.0
        for step in times.values():
            steps = math.ceil(window_rows / step.batch)
            least, most = least + steps * step.least, most + steps * step.most
        described["window"] = _window(planned.cluster, rates, window_s, window_rows, (least, most))
    return described


def _window(cluster: Cluster, rates: Rates, window_s: float, rows: int, seconds: tuple[float, float]) -> dict[str, Any]:
    """Describes a window of a job: its time, its share of the stream's time, and its price."""
    described: dict[str, Any] = {
        "rows": rows,
        "seconds": list(seconds),
        "share_of_stream": [each / window_s for each in seconds],
        "price": None,
        "price_per_day": None,
    }
    if rates.price is not None:
        per_second = rates.price * cluster.count / _HOUR_S
        described["price"] = [each * per_second for each in seconds]
        described["price_per_day"] = [each * per_second * _DAY_S / window_s for each in seconds]
    return described
