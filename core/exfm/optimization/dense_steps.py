"""Steps the dense parameters of a model: sets the learning rate, clips the gradients, averages the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import torch
from torch import Tensor, nn

from exfm.config.training_sections import DenseOptimizer
from exfm.interfaces.local_shards import StateTensor
from exfm.interfaces.parallel_model import ParallelModel
from exfm.mappings import add_prefix, strip_prefix
from exfm.modeling.ranking_model import RankingModel
from exfm.optimization.learning_rate import learning_rate
from exfm.optimization.weight_average import WeightAverage

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}

_STEPS, _TRAINED = "steps", "trained."
"""Name of the number of steps, and prefix of the weights whose averages are published, in a training state."""


class DenseSteps:
    """Makes the steps of the dense layers.

    Args:
        model: the placed model, whose weights are averaged.
        extra: parameters that transfer adds in training; they are stepped and clipped too, and not averaged.
        parallel_model: the plan's handle of the model.
        config: the dense optimizer's config.

    Attributes:
        parameters: all parameters that are stepped.
        optimizer: torch's optimizer of the parameters.
        average: the average of the model's weights.
    """

    def __init__(
        self, model: RankingModel, extra: Sequence[nn.Parameter], parallel_model: ParallelModel, config: DenseOptimizer
    ) -> None:
        self.parameters = [*model.dense_parameters(), *extra]
        self.optimizer = _build_optimizer(self.parameters, config)
        self.average = WeightAverage(model, parallel_model, config.ema)
        self._parallel_model, self._config = parallel_model, config
        self._count = 0

    def step(self, batches: int) -> None:
        """Averages the gradients over the processes and over accumulated batches, and makes a step."""
        self._count += 1
        self._parallel_model.reduce_gradients(self.parameters)
        if batches > 1:
            # Scale the gradients, not the loss: the fused table optimizer already stepped on the unscaled loss.
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= batches
        if self._config.clip_norm is not None:
            self._parallel_model.clip_gradients(self.parameters, self._config.clip_norm)
        if self._config.warmup is not None or self._config.schedule is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self._config, self._count)
        self.optimizer.step()
        self.average.update(self._count)

    def state(self) -> dict[str, StateTensor]:
        """Returns the state that the next start needs, without the optimizer's state."""
        trained = add_prefix(_TRAINED, self.average.trained())
        return {**trained, _STEPS: torch.tensor(self._count)}

    def load_state(self, state: Mapping[str, StateTensor]) -> None:
        """Restores the result of ``state`` in a model that holds the published weights.

        Args:
            state: may hold other entries too. A snapshot of an older version has no number of steps: it counts as 0.
        """
        steps = state.get(_STEPS)
        self._count = int(steps) if isinstance(steps, Tensor) else 0
        trained = strip_prefix(_TRAINED, state)
        self.average.load_trained(trained)


def fits(names: Set[str], config: DenseOptimizer) -> bool:
    """Returns whether an optimizer keeps tensors of exactly these names for its parameters."""
    if config.name == "adagrad":
        return names == {"step", "sum"}
    kept = {"step", "exp_avg", "exp_avg_sq"}
    if config.name == "sgd":
        kept = set()
    return names in (kept, set())  # empty before the first step


def _build_optimizer(parameters: list[nn.Parameter], config: DenseOptimizer) -> torch.optim.Optimizer:
    """Builds the optimizer, with a group for each kind of parameters, because torch steps a group in few calls."""
    kinds: dict[tuple[type, str], list[nn.Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault((type(parameter), parameter.device.type), []).append(parameter)
    groups: list[dict[str, object]] = []
    for (kind, device), members in kinds.items():
        # Fused on a CPU, because a model's dense layers are many small tensors: a single call replaces ten for each.
        # Sharded parameters have another type, and torch chooses for them.
        fused = (kind is nn.Parameter and device == "cpu") or None
        groups.append({"params": members, "fused": fused})
    return _OPTIMIZERS[config.name](groups, lr=config.lr, weight_decay=config.weight_decay)  # type: ignore[call-arg]
