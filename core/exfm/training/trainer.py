"""One model in training: its served part, what transfer adds to it, and its optimizers.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exfm.config.checks import Arm
from exfm.config.experiment import DenseOptimizer
from exfm.data.batch import Batch
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.interfaces.transfer_strategy import (
    StudentOutput,
    Supervision,
    TeacherShape,
    TransferStrategy,
)
from exfm.modeling.ranking_model import RankingModel
from exfm.supervision.embeddings import EmbeddingShape
from exfm.training.building import build_model, build_strategies, seed_of
from exfm.training.folding import add_offsets, fold_offsets, tables_with_offsets
from exfm.training.taught import taught

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


@dataclass(frozen=True)
class StepLabels:
    """What a step learns from: the tasks whose labels are known, and whether transfer takes part."""

    tasks: tuple[str, ...]
    transfer: bool


@dataclass(frozen=True)
class Forward:
    """A forward pass, for others: probabilities (B,) by task, the representation (B, R), states (B, K) by entity."""

    probabilities: Mapping[str, Tensor]
    representation_BR: Tensor
    states: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: StudentOutput) -> Forward:
        """What was put out, without gradients."""
        probabilities = {task: logit.detach().sigmoid() for task, logit in output.logits.items()}
        states = {entity: state.detach() for entity, state in output.states.items()}
        return cls(probabilities, output.representation_BR.detach(), states)


class Trainer:
    """Trains one arm.

    Arms of one base start from equal weights: their served parts are built first, from the base's seed, and what
    transfer adds is built after it.

    Args:
        arm: which model.
        schema: the stream's schema.
        teachers: what is known of each teacher, by its name.
        plan: how it is placed.
        seed: the experiment's seed.

    Attributes:
        embedding: how its representation is stored as supervision, where it is.
        states: width of the states that are stored, by entity.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """

    def __init__(
        self,
        arm: Arm,
        schema: FeatureSchema,
        teachers: Mapping[str, TeacherShape],
        plan: ParallelPlan,
        seed: int,
    ) -> None:
        self.arm = arm
        self.plan = plan
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, arm.base))
            model = build_model(arm, schema)
            placed = plan.apply(model, arm.config.optimizer.tables)
            assert isinstance(placed, RankingModel)
            self.model = placed
            self.strategies = nn.ModuleList(build_strategies(arm, placed, teachers)).to(plan.device)
        for strategy in self.list_strategies():
            add_offsets(self.model, strategy.table_offsets())
        self.states = dict.fromkeys(arm.config.supervision.states, arm.config.supervision.state_dim)
        form = arm.config.supervision.embedding
        self.embedding = None if form == "none" else EmbeddingShape(form, model.backbone.output_dim)
        self.own_optimizers = [strategy.own_optimizer() for strategy in self.list_strategies()]
        groups = [group for one in self.own_optimizers if one is not None for group in one.param_groups]
        own = {id(parameter) for group in groups for parameter in group["params"]}
        dense = [*self.model.dense_parameters(), *(p for p in self.strategies.parameters() if id(p) not in own)]
        self.learned: set[str] = set()
        self.optimizer = _dense_optimizer(dense, arm.config.optimizer.dense)

    def predict(self, batch: Batch) -> Forward:
        """The forward pass, without training."""
        with torch.no_grad():
            return Forward.of(self.model(batch))

    def step(self, batch: Batch, supervision: Mapping[str, Supervision], learn: StepLabels) -> Forward:
        """Predicts a batch, then trains on it with the same forward pass.

        A task's first batch with labels sets the bias of its head to their rate, so that the trunk need not move it.

        Args:
            batch: holds the model's own features.
            supervision: aligned with the batch, by teacher; a teacher without any is left out.
            learn: what is known.

        Returns:
            The forward pass from before the step.
        """
        output = self.model(batch)
        predicted = Forward.of(output)
        new = [task for task in learn.tasks if task not in self.learned]
        if new:
            for task in new:
                self.model.start_head(task, batch.labels[task])
            self.learned.update(new)
            output = self.model(batch)
        losses = [
            nn.functional.binary_cross_entropy_with_logits(output.logits[task], batch.labels[task])
            for task in learn.tasks
        ]
        losses += self._transfer(output, supervision, batch, learn) if learn.transfer else []
        if self.model.states is not None and learn.tasks:
            known = {task: batch.labels[task] for task in learn.tasks}
            losses.append(self.model.states.loss(output.states, output.logits, known))
        if losses:
            self.optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.plan.after_step(self.model)
        return predicted

    def _transfer(
        self, output: StudentOutput, supervision: Mapping[str, Supervision], batch: Batch, learn: StepLabels
    ) -> list[Tensor]:
        """Steps what strategies train themselves, then gives their terms of the student's loss."""
        labels = {task: batch.labels[task] for task in learn.tasks}
        losses = []
        for strategy, optimizer in zip(self.list_strategies(), self.own_optimizers, strict=True):
            found = taught(strategy, supervision)
            if found is None:
                continue
            if optimizer is not None:
                optimizer.zero_grad()
                strategy.own_loss(found, labels).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            losses.append(strategy.loss(output, found, labels))
        return losses

    def observe(self, batch: Batch) -> None:
        """Updates what is not learned by gradient, once per example."""
        self.model.observe(batch)

    def list_strategies(self) -> list[TransferStrategy]:
        """Its transfer strategies, in the order of the file."""
        return [strategy for strategy in self.strategies if isinstance(strategy, TransferStrategy)]

    def weights(self) -> dict[str, Tensor]:
        """The served part: what serving and labelling need."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        return weights | fold_offsets(self.model)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts back what ``weights`` gave."""
        self.model.load_state_dict(dict(weights))

    def training_state(self) -> dict[str, Tensor]:
        """What continuing the training needs besides: optimizers and the strategies' own parameters."""
        state = {f"table.{key}": value for key, value in self.plan.table_state(self.model).items()}
        state |= {f"unfolded.{key}": value for key, value in tables_with_offsets(self.model).items()}
        state |= {f"transfer.{key}": value for key, value in self.strategies.state_dict().items()}
        for prefix, optimizer in self._optimizers():
            for index, values in optimizer.state_dict()["state"].items():
                state |= {f"{prefix}{index}.{name}": value for name, value in values.items()}
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``training_state`` gave."""
        self.plan.load_table_state(self.model, _part(state, "table."))
        self.model.load_state_dict(_part(state, "unfolded."), strict=False)
        self.strategies.load_state_dict(_part(state, "transfer."))
        for prefix, optimizer in self._optimizers():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, value in _part(state, prefix).items():
                index, _, name = key.partition(".")
                moments.setdefault(int(index), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})

    def _optimizers(self) -> Iterator[tuple[str, torch.optim.Optimizer]]:
        """The optimizers of what is not a table, each with the prefix of its state."""
        yield "dense.", self.optimizer
        for number, optimizer in enumerate(self.own_optimizers):
            if optimizer is not None:
                yield f"own.{number}.", optimizer


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _dense_optimizer(parameters: list[nn.Parameter], config: DenseOptimizer) -> torch.optim.Optimizer:
    return _OPTIMIZERS[config.name](parameters, lr=config.lr, weight_decay=config.weight_decay)  # type: ignore[call-arg]
