"""Computes the cost of serving a model, on the meta device: nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from exfm.config.loading import Experiment
from exfm.modeling.build import build_model
from exfm.planning.activations import forward_cost
from exfm.planning.needs import list_lengths
from exfm.serving.find_snapshot import find_arm
from exfm.serving.served_model import without_teaching

_EXAMPLES = 8  # a few, because FLOPs are in proportion to them


@dataclass(frozen=True)
class ServingCost:
    """The cost of serving a model.

    Attributes:
        flops: of a forward pass of an example, with lists of full length.
        parameters: numbers in tables and layers.
        lookups: vectors of teachers that are looked up.
    """

    flops: float
    parameters: int
    lookups: int

    def excess(self, limit: ServingCost, factor: float) -> str:
        """Says in which way the cost exceeds a limit times a factor; empty where it does not."""
        for name in ("flops", "parameters", "lookups"):
            cost, allowed = getattr(self, name), getattr(limit, name) * factor
            if cost > allowed:
                return f"{cost:,.0f} {name} at serving, and at most {allowed:,.0f} are allowed"
        return ""


def serving_cost(experiment: Experiment, model: str) -> ServingCost:
    """Computes the cost of serving a model.

    Raises:
        ConfigError: there is no such model, or a component refuses its config.
    """
    arm = find_arm(experiment, model)
    # Forked, so that a look at the cost moves no generator that training draws from.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = build_model(without_teaching(arm), experiment.schema)
    lengths = list_lengths(experiment.schema, {})
    flops = forward_cost(network, experiment.schema, _EXAMPLES, lengths).flops / _EXAMPLES
    return ServingCost(flops, sum(parameter.numel() for parameter in network.parameters()), len(arm.lookups))
