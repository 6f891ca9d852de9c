"""Averages the dense weights of a model over its training steps, for the snapshots that it publishes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from exfm.interfaces.local_shards import StateTensor
from exfm.interfaces.parallel_model import ParallelModel
from exfm.modeling.ranking_model import RankingModel


class WeightAverage:
    """Keeps an exponential moving average of the dense weights.

    After step n it is the mean of the weights after the steps 1 to n, in which a step counts ``decay`` times as much as
    the step after it. So it needs no time to forget the initial weights. Training does not read it.

    Tables are not averaged, because a step changes only few rows of them. Nor are statistics, which average already.

    Args:
        model: the placed model.
        parallel_model: the plan's handle of the model.
        decay: None to keep no average.
    """

    def __init__(self, model: RankingModel, parallel_model: ParallelModel, decay: float | None) -> None:
        self._model, self._parallel_model, self._decay = model, parallel_model, decay
        # Frozen parts are the teacher's, and published as they are.
        self._parameters = [parameter for parameter in model.dense_parameters() if parameter.requires_grad]
        # Empty before the first step, because labellers and unused models need no copy.
        self._averages: list[Tensor] = []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after a step, whose number is 1 for the first."""
        if self._decay is None:
            return
        if not self._averages:
            self._start()
            return
        newest = (1.0 - self._decay) / (1.0 - self._decay**step)
        for average, parameter in zip(self._averages, self._parameters, strict=True):
            average.lerp_(parameter, newest)

    def _start(self) -> None:
        self._averages = self._copies()

    def _copies(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._parameters]

    @contextmanager
    def setting_weights(self) -> Iterator[None]:
        """Starts the average of those weights again that the caller sets otherwise than by a step.

        Such are the bias of a head, which the first labels set, and parts that a student copies from its teacher.
        Averaged with the weights before, they would take many steps to arrive in a published snapshot.
        """
        if not self._averages:
            yield
            return
        before = self._copies()
        yield
        with torch.no_grad():
            for average, parameter, old in zip(self._averages, self._parameters, before, strict=True):
                average.copy_(torch.where(parameter == old, average, parameter))

    def published(self) -> dict[str, StateTensor]:
        """Returns the averages, sharded as the parameters are, by state-dict name; empty without an average."""
        return self._by_name(self._averages)

    def trained(self) -> dict[str, StateTensor]:
        """Returns the weights that training goes on with, as ``published`` returns their averages."""
        return self._by_name(self._parameters)

    def _by_name(self, tensors: Sequence[Tensor]) -> dict[str, StateTensor]:
        """Maps state-dict names to tensors that belong to the parameters; none without an average."""
        if not self._averages:
            return {}
        by_parameter = dict(zip(map(id, self._parameters), tensors, strict=True))
        named: dict[str, StateTensor] = {}
        # With duplicates, because a state dict has a parameter under each of its names.
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if id(parameter) in by_parameter:
                named[name] = by_parameter[id(parameter)].detach()
        return named

    def load_trained(self, weights: Mapping[str, StateTensor]) -> None:
        """Restores the result of ``trained`` in a model that holds the published weights.

        Args:
            weights: empty where the snapshot has no average; then the next step begins one.
        """
        self._averages = []
        if not weights:
            return
        if self._decay is not None:
            self._start()
        self._parallel_model.load_state_dict(weights, strict=False)
