"""Trains a model: its served network, the parameters that transfer adds, and the optimizers of both.

Legend: B examples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from exfm.config.checks import Arm
from exfm.data.batch import ROW_WEIGHT, Batch
from exfm.data.device_copies import DeviceCopies
from exfm.distributed.batch_gatherer import BatchGatherer, BatchSums
from exfm.distributed.chunk_exchange import WHOLE_STEP, Accumulation
from exfm.errors import ConfigError, RunError
from exfm.interfaces.distillation_strategy import StudentOutput
from exfm.interfaces.local_shards import StateTensor, copy_state, whole_tensors
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.interfaces.transfer_specs import TeacherSpec
from exfm.mappings import add_prefix, map_values, strip_prefix, take_rows, without
from exfm.modeling.block_kernels import adapt_blocks
from exfm.modeling.build import build_growth, build_model, parallelize, seed_of
from exfm.modeling.labels import Labels, label_sums, label_totals
from exfm.modeling.parts import table_of
from exfm.modeling.ranking_model import RankingModel
from exfm.modeling.read_states import ModelOutput
from exfm.modeling.sampling import LogSampling
from exfm.optimization.dense_steps import DenseSteps, fits
from exfm.storage.finite import infinite_buffers
from exfm.storage.shard_reader import Destinations
from exfm.supervision.embeddings import EmbeddingShape
from exfm.supervision.joiner import ROW, STATE
from exfm.transfer.build import build_strategies
from exfm.transfer.row_offsets import fold_offsets, tables_with_offsets
from exfm.transfer.student_parameters import StudentParameters
from exfm.transfer.student_transfer import STRATEGIES, StudentTransfer, parameters_of
from exfm.transfer.taught_batch import TaughtBatch, shard_sums

_STATE_SUMS = "states."
"""Prefixes the names of the sums that losses of states need."""


@dataclass(frozen=True)
class Forward:
    """Holds the output of a forward pass, detached from its graph.

    Attributes:
        probabilities: (B,) by task: a probability or an expected value; (B, W) with a probability per class.
        embedding_BE: the representation in the form that is stored.
        vectors: (B, K) by column.
    """

    probabilities: Mapping[str, Tensor]
    embedding_BE: Tensor
    vectors: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    @torch.no_grad()
    def from_output(cls, output: ModelOutput, model: RankingModel) -> Forward:
        """Detaches the output of a model."""
        probabilities = model.predictions(output)
        states = {f"{STATE}{entity}": state.detach() for entity, state in output.states.items()}
        embedding_BE = output.embedding_BE
        if embedding_BE is None:
            embedding_BE = output.representation_BR
        return cls(probabilities, embedding_BE.detach(), states)

    def first_rows(self, rows: int) -> Forward:
        """Selects the first rows, to cut off the blank example of an empty shard."""
        return Forward(
            take_rows(self.probabilities, slice(rows)),
            self.embedding_BE[:rows],
            take_rows(self.vectors, slice(rows)),
        )

    def with_vectors(self, vectors: Mapping[str, Tensor]) -> Forward:
        """Returns a copy with further vectors."""
        return replace(self, vectors={**self.vectors, **vectors})


class Trainer:
    """Trains an arm.

    Arms of equal shape start from equal weights, because the served network is built first, from a seed that depends on
    the shape alone. Parameters of transfer are built after it.

    Args:
        arm: the model's config.
        schema: the stream's schema.
        teachers: each teacher's description, by name.
        plan: the parallel plan.
        seed: the experiment's seed.

    Attributes:
        embedding: the form in which the representation is stored as supervision; None where it is not stored.
        constants: names, in ``weights`` and ``training_state``, of tensors that are infinite on purpose.
        vectors: the form in which states and table rows are stored with the supervision, by column.
        transfer: the model's strategies, and the parameters that it takes from teachers.
        dense: the steps of the dense layers.
        sampling: converts logits of all traffic to those of the log, where its negatives are down-sampled.
        learned: the tasks of which the model has seen labels.
        copies: the copies of batches on the plan's device.

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
        # Forked, so that building a model does not advance the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, arm, schema))
            model = build_model(arm, schema)
            check_managed(arm, model, type(plan))
            self.model = model
            adapt_blocks(arm, model, plan.device)
            self.parallel_model = parallelize(plan, model, arm)
            self._trunk_runner = plan.trunk_runner
            strategies, declared = build_strategies(arm, self.model, teachers)
        parameters = StudentParameters(self.model, declared, schema.entity_tables(), plan.device, self.parallel_model)
        placed = [strategy.to(plan.device) for strategy in strategies]
        self.sampling = LogSampling(schema)
        self.transfer = StudentTransfer(placed, parameters, self.parallel_model, self.sampling, model.label_kinds)
        supervision = arm.config.supervision
        state = EmbeddingShape(supervision.state_dtype, supervision.state_dim)
        self.vectors = {f"{STATE}{entity}": state for entity in supervision.states}
        row = EmbeddingShape("float16", arm.config.embedding_dim)
        self.vectors |= {f"{ROW}{feature}": row for feature in supervision.rows}
        self.embedding: EmbeddingShape | None = None
        if supervision.embedding != "none":
            width = supervision.embedding_dim or model.backbone.output_dim
            self.embedding = EmbeddingShape(supervision.embedding, width)
        extra = list(self.transfer.dense_parameters())
        self.dense = DenseSteps(self.model, extra, self.parallel_model, arm.config.optimizer.dense)
        self.learned: set[str] = set()
        self._has_gradients = False
        self.copies = DeviceCopies[Batch](plan.device)
        strategy_constants = {f"{STRATEGIES}{name}" for name in infinite_buffers(self.transfer.modules)}
        self.constants = infinite_buffers(self.model) | strategy_constants

    def predict(self, batch: Batch) -> Forward:
        """Runs the forward pass without gradients."""
        with torch.no_grad():
            return Forward.from_output(self.model(batch.to(self.plan.device)), self.model)

    def step(
        self,
        batch: Batch,
        taught: Sequence[TaughtBatch],
        tasks: Sequence[str],
        counts: Sequence[int] | None = None,
        accumulation: Accumulation = WHOLE_STEP,
    ) -> Forward:
        """Predicts a batch, then trains on it with the same forward pass.

        Args:
            batch: holds the features that the model reads.
            taught: teacher output aligned with the batch, of ``transfer.slice`` or ``transfer.join``; transfer
                strategies without any add no loss.
            tasks: the tasks whose labels are available, where they are known.
            counts: number of rows of the batch on each process; ``batch`` and ``taught`` hold the rows of this
                process, or ``batch`` a blank example where it has none. All rows are of this process by default.
            accumulation: position of the batch in the gradient accumulation.

        Returns:
            The forward pass from before the step.
        """
        with self._trunk_runner.training_step(batch.size) as run_trunk:
            gatherer = BatchGatherer(self.plan.process_group, counts or (batch.size,))
            batch = self.copies.take(batch)
            output = self.model(batch, run_trunk)
            predicted = Forward.from_output(output, self.model)
            labels, weights = gatherer.cut(batch.labels), gatherer.cut(batch.weights)
            # Before the backward pass, in which the tables are updated.
            if taught:
                tokens = gatherer.cut(self._tokens(batch))
                taught = self.transfer.prepare(taught, tokens, weights.get(ROW_WEIGHT))
            rows = self._rows(output, gatherer)
            sums = self._sums(rows, taught, labels, weights, tasks, gatherer)
            learned = self._learned(labels, weights, tasks, sums, gatherer)
            if self._start_heads(learned, gatherer):
                # Again, because the logits depend on the biases. Predictions stay those from before the labels.
                rows = self._rows(self.model(batch, run_trunk), gatherer)
            losses = self._losses(rows, taught, labels, learned, sums, gatherer)
            self._learn(losses, rows, accumulation)
            return predicted

    def _rows(self, output: ModelOutput, gatherer: BatchGatherer) -> ModelOutput:
        """Returns the output of this process's rows, with the logits of the log."""
        return self.sampling.in_log(gatherer.cut_output(output))

    def _sums(
        self,
        output: ModelOutput,
        taught: Sequence[TaughtBatch],
        labels: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        tasks: Sequence[str],
        gatherer: BatchGatherer,
    ) -> BatchSums:
        """Adds up over the processes, in a single collective, what losses of some rows need of the whole batch."""
        sums = self.transfer.sums(output, taught) | add_prefix(_STATE_SUMS, self.model.state_sums(output))
        if gatherer.processes > 1:
            sums |= label_sums(labels, tasks, weights) | shard_sums(taught, labels, tasks, weights, gatherer.rows)
        return gatherer.add_up(sums)

    def _learned(
        self,
        labels: Mapping[str, Tensor],
        weights: Mapping[str, Tensor],
        tasks: Sequence[str],
        sums: BatchSums,
        gatherer: BatchGatherer,
    ) -> Labels:
        """Selects the labels that the step learns: of the tasks of which any process knows a label."""
        heads = self.model.heads_by_task
        if gatherer.processes == 1:
            return Labels.of_tasks(labels, tasks, weights, heads)
        totals = label_totals(sums.whole, sum(gatherer.counts))
        return Labels.of_shard(labels, tasks, weights, heads, totals, gatherer.processes)

    def _start_heads(self, labels: Labels, gatherer: BatchGatherer) -> bool:
        """Sets the bias of the head of each task whose labels are seen for the first time; returns whether any is.

        A binary head's bias becomes the logit of the batch's rate, so that the trunk need not move it.
        """
        started = [task for task in labels.values if task not in self.learned]
        if started:
            first = labels
            if gatherer.processes > 1:
                # Of the whole batch, because a head may start from more than sums of it, such as a deviation.
                values, weights = gatherer.labels(labels.values), gatherer.labels(labels.weights)
                first = Labels(values, weights, heads=labels.heads)
            with self.dense.average.setting_weights():
                for task in started:
                    self.model.start_head(task, first, self.sampling.offset(task))
        self.learned.update(started)
        return bool(started)

    def _losses(
        self,
        output: ModelOutput,
        taught: Sequence[TaughtBatch],
        labels: Mapping[str, Tensor],
        learned: Labels,
        sums: BatchSums,
        gatherer: BatchGatherer,
    ) -> list[Tensor]:
        """Computes the losses of this process's rows, whose mean over the processes is the loss of the batch."""
        losses = [learned.loss(task, output.logits[task]) for task in learned.values]
        losses += self.transfer.losses(output, taught, labels, learned, sums, gatherer)
        if learned.values:
            states = strip_prefix(_STATE_SUMS, sums.whole)
            losses += self.model.state_losses(output, learned, states, gatherer.process_group, gatherer.counts)
        if losses and gatherer.processes > 1:
            # Zero, because every process must take part in the collectives of the trunk's backward pass, whether a
            # loss of its rows depends on the trunk or not.
            losses.append(0.0 * output.representation_BR.sum())
        return losses

    def _tokens(self, batch: Batch) -> dict[str, Tensor]:
        """Looks up the tokens (B, D) that strategies read, by feature, without gradient."""
        features = self.transfer.features
        return self.model.featurizer.rows(batch, features) if features else {}

    def _learn(self, losses: list[Tensor], output: StudentOutput, accumulation: Accumulation) -> None:
        """Runs the backward pass, in which tables are updated, and the dense step after the last micro-batch."""
        if accumulation.is_first:
            self.dense.optimizer.zero_grad()
            self._has_gradients = False
        if accumulation.is_last and self._has_gradients and not losses:
            # A loss of zero, because gradients of the earlier micro-batches are all-reduced in a backward pass only.
            losses = [0.0 * logit.sum() for logit in output.logits.values()]
        if losses:
            self.parallel_model.set_gradient_sync(accumulation.is_last)
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]
            self._has_gradients = True
            self.parallel_model.sync_tables()
        if accumulation.is_last and self._has_gradients:
            self.dense.step(accumulation.steps)

    def rows(self, batch: Batch) -> dict[str, Tensor]:
        """Copies the table rows that are stored with the supervision, as they are now, (B, D) by column."""
        features = self.arm.config.supervision.rows
        if not features:
            return {}
        rows = self.model.featurizer.rows(batch, features)
        return {f"{ROW}{feature}": rows[feature] for feature in features}

    def observe(self, batch: Batch, rows: int | None = None) -> None:
        """Updates statistics and id tables, which are not learned by gradient, once per example.

        Args:
            rows: number of the batch's leading examples that are not blank; all by default.
        """
        if rows is None:
            rows = batch.size
        for table, started in self.model.observe(self.copies.take(batch), self.plan.process_group, rows).items():
            self.parallel_model.reset_rows(f"table_{table}", started.row_N, started.like_N)

    def weights(self) -> dict[str, StateTensor]:
        """Returns the published weights of the served network, which serving and labelling need.

        A process has its shards of sharded tensors, and shares memory with the model. A collective operation.
        """
        state = self.parallel_model.state_dict()
        return state | self.dense.average.published() | fold_offsets(self.model, state)

    def destinations(self) -> Destinations:
        """Returns the memory that tensors of ``weights`` and ``training_state`` are read into, by name.

        It is the model's own for all but small tensors: a table is not in memory twice. A collective operation.
        """
        model = self.parallel_model.state_dict()
        memory = model | add_prefix("table.", self.parallel_model.table_optimizer_buffers())
        # The trained tables of a snapshot replace the published tables, which are read before them.
        memory |= add_prefix("unfolded.", tables_with_offsets(self.model, model))

        def find(name: str) -> StateTensor | None:
            prefix, _, path = name.partition(".")
            if prefix == "trained" and isinstance(value := model.get(path), Tensor):
                return torch.empty_like(value)  # the average is still in the model's memory
            index, _, kind = path.partition(".")
            if prefix == "dense" and kind != "step" and index.isdecimal() and int(index) < len(self.dense.parameters):
                return torch.empty_like(self.dense.parameters[int(index)].detach())
            return memory.get(name)

        return find

    def load_weights(self, weights: Mapping[str, StateTensor]) -> None:
        """Loads the tensors of ``weights``, whose tables may have had fewer rows.

        Raises:
            ConfigError: a table cannot have grown to its present size.
        """
        self.parallel_model.load_state_dict(self.growth.grow(weights))

    def training_state(self) -> dict[str, StateTensor]:
        """Returns the state that training needs beside the weights: of the optimizers and of transfer.

        A process has its shards of sharded tensors, and shares memory with the model. A collective operation.
        """
        state = add_prefix("table.", self.parallel_model.table_optimizer_state_dict())
        state |= add_prefix("unfolded.", tables_with_offsets(self.model, self.parallel_model.state_dict()))
        state |= self.transfer.state() | self.dense.state()
        for prefix, parameters, optimizer in self._optimizers():
            for index, parameter in enumerate(parameters):
                for name, value in optimizer.state.get(parameter, {}).items():
                    state[f"{prefix}{index}.{name}"] = value
        return map_values(_detached, state)

    def tables(self, weights: Mapping[str, StateTensor], training: Mapping[str, StateTensor]) -> list[dict[str, str]]:
        """Returns, of tensors of ``weights`` and of ``training_state`` whose rows are those of a table, the table.

        The names of tables are those of ``ParallelModel.take_changed_rows``.
        """
        of_weights: dict[str, str] = {}
        for name in weights:
            # The offsets of a folded table change with layers that all its rows go through.
            if (table := table_of(name)) and f"unfolded.{name}" not in training:
                of_weights[name] = f"table_{table}"
        of_training: dict[str, str] = {}
        for name in training:
            if name.startswith("unfolded."):
                of_training[name] = f"table_{table_of(name)}"
            elif name.startswith("table."):
                of_training[name] = name.rpartition(".weight.")[0].rpartition(".")[2]
        return [of_weights, of_training]

    def load_training_state(self, state: Mapping[str, StateTensor]) -> None:
        """Loads the tensors of ``training_state``, whose tables may have had fewer rows; rates stay the config's.

        Called after ``load_weights``, because weights whose averages are published replace them.

        Raises:
            ConfigError: it is the state of another optimizer.
            RunError: it is the transfer state of another version of exfm or of a strategy.
        """
        # Strategies apart: a layer of a strategy may have the name of a table, and does not grow with its rows.
        strategies = add_prefix(STRATEGIES, strip_prefix(STRATEGIES, state))
        state = strategies | self.growth.grow(without(state, *strategies))
        try:
            self.parallel_model.load_table_optimizer_state_dict(strip_prefix("table.", state))
        except (KeyError, RuntimeError) as error:
            raise self._other_optimizer("tables") from error
        self.parallel_model.load_state_dict(strip_prefix("unfolded.", state), strict=False)
        self._load_transfer(state)
        self.dense.load_state(state)
        for prefix, parameters, optimizer in self._optimizers():
            kept = strip_prefix(prefix, state)
            names = {key.partition(".")[2] for key in kept}  # keys are an index, a dot, and torch's name
            if prefix == "dense." and not fits(names, self.arm.config.optimizer.dense):
                raise self._other_optimizer("dense")
            optimizer.state.clear()
            for key, value in kept.items():
                index, _, name = key.partition(".")
                parameter = parameters[int(index)]
                # A copy, because the optimizer updates its state in place and the loaded tensor may be shared. Torch
                # keeps the count of steps whole and on the CPU, wherever the parameter is.
                like = value if name == "step" and isinstance(value, Tensor) else parameter.detach()
                copy = torch.empty_like(like, dtype=value.dtype)
                copy_state(key, copy, value)
                optimizer.state.setdefault(parameter, {})[name] = copy

    def _load_transfer(self, state: Mapping[str, StateTensor]) -> None:
        try:
            self.transfer.load_state(whole_tensors(state))
        except (KeyError, RuntimeError) as error:
            raise RunError(
                f"models.{self.arm.base}.transfer: the run's snapshots hold the state of another version of exfm, or "
                "of a strategy: finish the run with that version, or start over with `exfm run CONFIG --fresh`"
            ) from error

    def _other_optimizer(self, group: str) -> ConfigError:
        now = getattr(self.arm.config.optimizer, group).name
        return ConfigError(
            f"models.{self.arm.base}.optimizer.{group}.name: the run's snapshots hold the state of another optimizer"
            f" than {now!r}; a run goes on with other rates, and with the same kind of optimizer"
        )

    def _optimizers(self) -> Iterator[tuple[str, list[nn.Parameter], torch.optim.Optimizer]]:
        """Yields the optimizers of dense parameters, each with the prefix of its state and its parameters in order."""
        yield "dense.", self.dense.parameters, self.dense.optimizer
        for number, optimizer in self.transfer.optimizers():
            yield f"own.{number}.", parameters_of(optimizer), optimizer


def _detached(value: StateTensor) -> StateTensor:
    return value.detach()


def check_managed(arm: Arm, model: RankingModel, plan: type[ParallelPlan]) -> None:
    """Checks that a plan can reset table rows, if a model has tables with managed ids.

    Raises:
        ConfigError: it cannot.
    """
    if model.featurizer.managed and not plan.resets_rows:
        raise ConfigError(
            f"models.{arm.base}: it reads a table with ids: managed, whose rows get new ids, and the parallel plan "
            f"{plan.name} cannot start rows anew; name another plan, or ids: hash"
        )
