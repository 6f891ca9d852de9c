"""One model in training: its served part, what transfer adds to it, and its optimizers.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exfm.config.checks import Arm
from exfm.config.experiment import DenseOptimizer
from exfm.data.batch import Batch
from exfm.distributed.batch_gatherer import BatchGatherer
from exfm.errors import ConfigError, RunError
from exfm.interfaces.distillation_strategy import StudentOutput, TeacherOutput
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import CategoricalFeature, FeatureSchema
from exfm.interfaces.transfer_specs import TeacherSpec
from exfm.modeling.build import build_growth, build_model, parallelize, seed_of
from exfm.modeling.parts import model_memory
from exfm.modeling.ranking_model import RankingModel
from exfm.modeling.read_states import ModelOutput
from exfm.storage.finite import infinite_buffers
from exfm.supervision.embeddings import EmbeddingShape
from exfm.supervision.joiner import ROW, STATE
from exfm.transfer.build import build_strategies
from exfm.transfer.row_offsets import fold_offsets, tables_with_offsets
from exfm.transfer.student_parameters import StudentParameters
from exfm.transfer.student_transfer import STRATEGIES, StudentTransfer, parameters_of

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
class Turn:
    """A batch's place among those that make one step of the dense layers: ``of`` batches, opened and closed by one."""

    opens: bool = True
    closes: bool = True
    of: int = 1

    @classmethod
    def at(cls, number: int, batches: int, accumulate: int) -> Turn:
        """The turn of one of a chunk's batches; the last ones of a chunk may be fewer than ``accumulate``."""
        first = number - number % accumulate
        of = min(accumulate, batches - first)
        return cls(number == first, number == first + of - 1, of)


@dataclass(frozen=True)
class Forward:
    """A forward pass, for others.

    Attributes:
        probabilities: (B,) by task.
        embedding_BE: the representation as it is stored.
        vectors: (B, K) by column.
    """

    probabilities: Mapping[str, Tensor]
    embedding_BE: Tensor
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, output: ModelOutput) -> Forward:
        """What was put out, without gradients."""
        probabilities = {task: logit.detach().sigmoid() for task, logit in output.logits.items()}
        states = {f"{STATE}{entity}": state.detach() for entity, state in output.states.items()}
        embedding_BE = output.representation_BR if output.embedding_BE is None else output.embedding_BE
        return cls(probabilities, embedding_BE.detach(), states)

    def first(self, rows: int) -> Forward:
        """Of the first rows only."""
        return Forward(
            {task: values[:rows] for task, values in self.probabilities.items()},
            self.embedding_BE[:rows],
            {column: values[:rows] for column, values in self.vectors.items()},
        )

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Forward:
        """With more of them."""
        return replace(self, vectors={**self.vectors, **vectors})


class Trainer:
    """Trains one arm.

    Arms of equal shape start from equal weights: their served parts are built first, from a seed that their shape
    decides, and what transfer adds is built after it.

    Args:
        arm: which model.
        schema: the stream's schema.
        teachers: each teacher's description, by its name.
        plan: how it is placed.
        seed: the experiment's seed.

    Attributes:
        embedding: how its representation is stored as supervision, where it is.
        constants: names, in ``weights`` and ``training_state``, of what is not finite on purpose.
        vectors: how the states and rows are stored with its supervision, by column.
        transfer: its strategies, and the parameters that it takes.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """

    def __init__(
        self,
        arm: Arm,
        schema: FeatureSchema,
        teachers: Mapping[str, TeacherSpec],
        plan: ParallelPlan,
        seed: int,
    ) -> None:
        self.arm = arm
        self.plan = plan
        self.growth = build_growth(arm, schema, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, arm, schema))
            model = build_model(arm, schema)
            check_managed(arm, model, type(plan))
            self.model = model
            self.parallel_model = parallelize(plan, model, arm)
            self._trunk_runner = plan.trunk_runner
            strategies, declared = build_strategies(arm, self.model, teachers)
        features = {one.name: one.table_name for one in schema.features if isinstance(one, CategoricalFeature)}
        parameters = StudentParameters(self.model, declared, features, plan.device)
        self.transfer = StudentTransfer([one.to(plan.device) for one in strategies], parameters, self.parallel_model)
        supervision = arm.config.supervision
        state = EmbeddingShape(supervision.state_dtype, supervision.state_dim)
        self.vectors = {f"{STATE}{entity}": state for entity in supervision.states}
        row = EmbeddingShape("float16", arm.config.embedding_dim)
        self.vectors |= {f"{ROW}{feature}": row for feature in supervision.rows}
        form, width = supervision.embedding, supervision.embedding_dim or model.backbone.output_dim
        self.embedding = None if form == "none" else EmbeddingShape(form, width)
        self.dense = [*self.model.dense_parameters(), *self.transfer.dense_parameters()]
        self.learned: set[str] = set()
        self.optimizer = _dense_optimizer(self.dense, arm.config.optimizer.dense)
        self._has_gradients = False
        own_constants = {f"{STRATEGIES}{name}" for name in infinite_buffers(self.transfer.modules)}
        self.constants = infinite_buffers(self.model) | own_constants

    def predict(self, batch: Batch) -> Forward:
        """The forward pass, without training."""
        with torch.no_grad():
            return Forward.of(self.model(batch.to(self.plan.device)))

    def step(
        self,
        batch: Batch,
        supervision: Mapping[str, TeacherOutput],
        learn: StepLabels,
        counts: Sequence[int] | None = None,
        turn: Turn = Turn(),
    ) -> Forward:
        """Predicts a batch, then trains on it with the same forward pass.

        A task's first batch with labels sets the bias of its head to their rate, so that the trunk need not move it.

        Args:
            batch: holds the model's own features.
            supervision: aligned with the batch, by teacher; a teacher without any is left out.
            learn: what is known.
            counts: how many rows of the batch each process has, where there are several: ``batch`` and
                ``supervision`` hold this one's, or ``batch`` a blank example where it has none.
            turn: its place among the batches of a step of the dense layers.

        Returns:
            The forward pass from before the step.
        """
        with self._trunk_runner.training_step(batch.size) as run_trunk:
            together = BatchGatherer(self.plan.process_group, counts or (batch.size,))
            batch = batch.to(self.plan.device)
            output = self.model(batch, run_trunk)
            predicted = Forward.of(output)
            labels = together.labels(batch.labels)
            new = [task for task in learn.tasks if task not in self.learned]
            if new:
                for task in new:
                    self.model.start_head(task, labels[task])
                self.learned.update(new)
                output = self.model(batch, run_trunk)
            read = self.model.read_states
            needs_representation = bool(self.transfer.strategies) or (read is not None and read.needs_representation)
            output = together.output(output, needs_representation)
            known = {task: labels[task] for task in learn.tasks}
            losses = [
                nn.functional.binary_cross_entropy_with_logits(output.logits[task], label)
                for task, label in known.items()
            ]
            if learn.transfer:
                losses += self.transfer.losses(output, together.supervision(supervision), labels, known)
            if learn.tasks:
                losses += self.model.state_losses(output, known)
            self._learn(losses, output, turn)
            return predicted

    def _learn(self, losses: list[Tensor], output: StudentOutput, turn: Turn) -> None:
        """The backward pass, in which tables are updated, and the dense step where the turn closes."""
        if turn.opens:
            self.optimizer.zero_grad()
            self._has_gradients = False
        if turn.closes and self._has_gradients and not losses:
            losses = [0.0 * logit.sum() for logit in output.logits.values()]  # what was left to average is averaged now
        if losses:
            self.parallel_model.set_gradient_sync(turn.closes)
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self._has_gradients = True
            self.parallel_model.sync_tables()
        if turn.closes and self._has_gradients:
            self.parallel_model.reduce_gradients(self.dense)
            if turn.of > 1:  # of the gradient and not of the loss, which is that of the tables too
                for parameter in self.dense:
                    if parameter.grad is not None:
                        parameter.grad /= turn.of
            self.optimizer.step()

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """The rows that are stored with its supervision, as they are now, (B, D) by column."""
        features = self.arm.config.supervision.rows
        if not features:
            return {}
        found = self.model.featurizer.rows(batch, features)
        return {f"{ROW}{feature}": found[feature] for feature in features}

    def observe(self, batch: Batch, own: int | None = None) -> None:
        """Updates what is not learned by gradient, once per example.

        Args:
            own: the batch's examples that are no blanks; all by default.
        """
        own = batch.size if own is None else own
        for table, started in self.model.observe(batch.to(self.plan.device), self.plan.process_group, own).items():
            self.parallel_model.reset_rows(f"table_{table}", started.row_N, started.like_N)

    def weights(self) -> dict[str, Tensor]:
        """The served part: what serving and labelling need."""
        weights = {name: value.contiguous() for name, value in self.parallel_model.state_dict().items()}
        return weights | fold_offsets(self.model)

    def memory(self) -> dict[str, Tensor]:
        """Memory for what ``weights`` and ``training_state`` give, as far as it lies whole in this process."""
        tables = self.parallel_model.table_optimizer_buffers()
        return model_memory(self.model) | {f"table.{key}": value for key, value in tables.items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Puts back what ``weights`` gave, perhaps of tables with fewer rows.

        Raises:
            ConfigError: a table cannot have become what it is now.
        """
        self.parallel_model.load_state_dict(self.growth.grow(weights))

    def training_state(self) -> dict[str, Tensor]:
        """What continuing the training needs besides: optimizers, and the state of transfer."""
        tables = self.parallel_model.table_optimizer_state_dict()
        state = {f"table.{key}": value for key, value in tables.items()}
        state |= {f"unfolded.{key}": value for key, value in tables_with_offsets(self.model).items()}
        state |= self.transfer.state()
        for prefix, parameters, optimizer in self._optimizers():
            for index, parameter in enumerate(parameters):
                # In one order: processes put a tensor together at the same time, and files keep none.
                for name, value in sorted(optimizer.state.get(parameter, {}).items()):
                    state[f"{prefix}{index}.{name}"] = self.parallel_model.full_tensor(value)
        return {key: value.detach().cpu().contiguous() for key, value in state.items()}

    def load_training_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``training_state`` gave, perhaps of tables with fewer rows; rates stay the config's.

        Raises:
            ConfigError: it is the state of another optimizer.
            RunError: it is the transfer state of another version of exfm or of a strategy.
        """
        # A strategy may call a layer what a table is called here; none of its tensors has a table's rows.
        strategies = {key: value for key, value in state.items() if key.startswith(STRATEGIES)}
        state = strategies | self.growth.grow({key: value for key, value in state.items() if key not in strategies})
        try:
            self.parallel_model.load_table_optimizer_state_dict(_part(state, "table."))
        except (KeyError, RuntimeError) as error:
            raise self._other_optimizer("tables") from error
        self.parallel_model.load_state_dict(_part(state, "unfolded."), strict=False)
        self._load_transfer(state)
        for prefix, parameters, optimizer in self._optimizers():
            kept = _part(state, prefix)
            names = {key.partition(".")[2] for key in kept}
            if prefix == "dense." and not _fits(names, self.arm.config.optimizer.dense):
                raise self._other_optimizer("dense")
            optimizer.state.clear()
            for key, value in kept.items():
                index, _, name = key.partition(".")
                parameter = parameters[int(index)]
                # Torch keeps a count of steps on the CPU, wherever the parameter is.
                placed = value.clone() if name == "step" else self.parallel_model.distribute_tensor(value, parameter)
                optimizer.state.setdefault(parameter, {})[name] = placed

    def _load_transfer(self, state: Mapping[str, Tensor]) -> None:
        try:
            self.transfer.load_state(state)
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"models.{self.arm.base}.transfer: the run's snapshots hold the state of another version of exfm, or "
                "of a strategy: finish the run with that version, or start over with `exfm run CONFIG --fresh`"
            ) from error

    def _other_optimizer(self, part: str) -> ConfigError:
        now = getattr(self.arm.config.optimizer, part).name
        return ConfigError(
            f"models.{self.arm.base}.optimizer.{part}.name: the run's snapshots hold the state of another optimizer"
            f" than {now!r}; a run goes on with other rates, and with the same kind of optimizer"
        )

    def _optimizers(self) -> Iterator[tuple[str, list[nn.Parameter], torch.optim.Optimizer]]:
        """The optimizers of what is not a table, each with the prefix of its state and its parameters in order."""
        yield "dense.", self.dense, self.optimizer
        for number, optimizer in self.transfer.optimizers():
            yield f"own.{number}.", parameters_of(optimizer), optimizer


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _fits(names: Set[str], config: DenseOptimizer) -> bool:
    """Whether these are the names of what an optimizer keeps for its parameters."""
    if config.name == "adagrad":
        return names == {"step", "sum"}
    kept = set[str]() if config.name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
    return names in (kept, set())  # nothing before its first step


def _dense_optimizer(parameters: list[nn.Parameter], config: DenseOptimizer) -> torch.optim.Optimizer:
    """The optimizer, with a group for each way in which parameters are kept: torch steps a group in one call."""
    kinds = dict.fromkeys((type(parameter), parameter.device.type) for parameter in parameters)
    # A model's dense layers are many small tensors: on a CPU, one call for all of them instead of ten for each.
    groups = [
        {
            "params": [one for one in parameters if (type(one), one.device.type) == (kind, device)],
            "fused": (kind is nn.Parameter and device == "cpu") or None,
        }
        for kind, device in kinds
    ]
    return _OPTIMIZERS[config.name](groups, lr=config.lr, weight_decay=config.weight_decay)  # type: ignore[call-arg]


def check_managed(arm: Arm, model: RankingModel, plan: type[ParallelPlan]) -> None:
    """Checks that a plan can do what a model with managed ids asks of it.

    Raises:
        ConfigError: it cannot.
    """
    if model.featurizer.managed and not plan.resets_rows:
        raise ConfigError(
            f"models.{arm.base}: it reads a table with ids: managed, whose rows get new ids, and the parallel plan "
            f"{plan.name} cannot start rows anew; name another plan, or ids: hash"
        )
