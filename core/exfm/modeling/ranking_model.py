"""Defines RankingModel: features -> tokens -> (encoders) -> backbone -> representation -> a head per task.

Legend: B examples, N tokens, K summary tokens, D width, R width of the representation, T tasks, L width of all
layers that states are read from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn

from exfm.config.experiment import ModelConfig
from exfm.config.inputs import ModelInput
from exfm.data.batch import Batch
from exfm.data.label_columns import labels_of
from exfm.interfaces.backbone import Backbone, BackboneInputs, SequenceShape
from exfm.interfaces.distillation_strategy import StudentOutput
from exfm.interfaces.network import reads_times
from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup
from exfm.interfaces.schema import FeatureSchema, Label, LabelKind
from exfm.interfaces.sequence_encoder import EncoderInputs, SequenceEncoder
from exfm.interfaces.task_head import TaskHead
from exfm.interfaces.trunk import RunBackbone, RunEncoder, RunTrunk, Sequences, run_backbone, run_encoder, run_trunk
from exfm.modeling.entity_states import EntityStates
from exfm.modeling.labels import Labels
from exfm.modeling.managed_ids import Started
from exfm.modeling.read_states import ModelOutput, ReadStates
from exfm.modeling.recompute import recompute
from exfm.modeling.teacher_inputs import TeacherInputs
from exfm.modeling.tokens import Featurizer


class Head(nn.Sequential):
    """Maps the representation (B, R) through an MLP to an output (B,), such as a logit, or to K outputs (B, K)."""

    def __init__(self, width: int, hidden: tuple[int, ...], outputs: int = 1) -> None:
        layers: list[nn.Module] = []
        for size in hidden:
            layers += [nn.Linear(width, size), nn.SiLU()]
            width = size
        # Several outputs have a layer without effect in the place of the last: the linear layer is always at -2.
        super().__init__(*layers, nn.Linear(width, outputs), nn.Flatten(0) if outputs == 1 else nn.Identity())


class RankingModel(nn.Module):
    """Predicts all tasks of an arm: the complete served model, without transfer strategies and with teacher inputs.

    Args:
        config: the model's section of the experiment.
        schema: the whole stream's schema; the config picks features from it.
        tasks: the labels it predicts.
        inputs: its teacher inputs.
        labels: the labels of tasks, by task; by default those of the schema. A label of neither is binary.
    """

    def __init__(
        self,
        config: ModelConfig,
        schema: FeatureSchema,
        tasks: tuple[str, ...],
        inputs: Sequence[ModelInput] = (),
        labels: Mapping[str, Label] | None = None,
    ) -> None:
        super().__init__()
        seen = schema.select(config.features)
        sequences = seen.sequences
        self.reads_sequences = bool(config.backbone.component.consumes_sequences)
        self.per_task = bool(config.backbone.component.per_task)
        raw = config.sequence_encoder is not None or self.reads_sequences
        self.featurizer = Featurizer(seen, config.embedding_dim, config.embedding_init, config.dense_tokens, raw)
        context = self.featurizer.token_names
        # Prefixed, because torch refuses a child that has the name of an attribute of ModuleDict, `items` or `type`.
        self.encoders = nn.ModuleDict()
        summaries: list[str] = []
        targets = {sequence.name: self.featurizer.tokens_like(sequence) for sequence in sequences}
        shapes: list[SequenceShape] = []
        for sequence in sequences:
            candidate, timed = targets[sequence.name], sequence.times is not None
            if config.sequence_encoder is not None:
                encoder_inputs = EncoderInputs(
                    sequence.name, config.embedding_dim, sequence.max_length, context, candidate, timed
                )
                encoder = config.sequence_encoder.build(encoder_inputs)
                self.encoders[f"sequence_{sequence.name}"] = encoder
                summaries += [f"{sequence.name}:{k}" for k in range(encoder.num_tokens)]
            if self.reads_sequences:
                shapes.append(SequenceShape(sequence.name, sequence.max_length, candidate, timed))
        tokens = (*context, *summaries)
        self.backbone = config.backbone.build(BackboneInputs(tokens, config.embedding_dim, tuple(shapes), tasks))
        self.inputs: TeacherInputs | None = None
        if inputs:
            rows = {feature.name: feature.rows for feature in seen.categorical}
            # A fork of the generator, and the first backbone built above only to advance it: the heads and tables start
            # from the weights that they have in a model without teacher inputs.
            with torch.random.fork_rng(devices=[]):
                self.inputs = TeacherInputs(inputs, rows)
                tokens = (*tokens, *self.inputs.token_names)
                spec = BackboneInputs(tokens, config.embedding_dim, tuple(shapes), tasks)
                self.backbone = config.backbone.build(spec)
        self.token_names = tokens
        self.featurizer.reads_times = reads_times(self)
        if config.activation_checkpointing:
            for block in self.blocks():
                recompute(block)
        # fp8 too: layers that have no fp8 products, and the model where it is served, compute in bf16.
        self.low_precision = config.precision != "fp32"
        self.compiled = config.compile
        self.head_hidden = config.head_hidden
        self.tasks = tasks
        self.labels = labels_of(tasks, {**schema.labels_of(tasks), **(labels or {})})
        self.task_heads = nn.ModuleDict()
        for task in tasks:
            if task in config.heads:
                self.task_heads[f"task_{task}"] = config.heads[task].build(self.labels[task])
        by_task = self.heads_by_task
        self.heads = nn.ModuleDict()
        for task in tasks:
            self.heads[f"task_{task}"] = self.new_head(by_task[task].num_outputs if task in by_task else 1)
        # States explain probabilities; what a number or a class would be in them is not defined.
        binary = tuple(task for task in tasks if self.labels[task].kind == "binary")
        self.states: EntityStates | None = None
        self.read_states: ReadStates | None = None
        teaches, dim = config.supervision, config.embedding_dim
        # A fork of the generator: tables and strategies start from the weights that they have without states.
        with torch.random.fork_rng(devices=[]):
            if teaches.described:
                histories = [sequence.name for sequence in sequences if raw]
                _check_states(binary, tasks)
                self.states = EntityStates(teaches.described, context, histories, binary, dim, teaches.state_dim)
            if teaches.read or teaches.embedding_dim is not None:
                _check_states(binary, tasks)
                self.read_states = ReadStates(teaches, self.backbone, context, dim, binary)
        dense = [feature.name for feature in schema.dense]
        names = frozenset(feature.name for feature in seen.features)
        self.feature_names = names
        self.dense_names = tuple(name for name in dense if name in names)
        self.dense_columns = torch.tensor([i for i, name in enumerate(dense) if name in names], dtype=torch.int64)

    def new_head(self, outputs: int = 1) -> nn.Module:
        """Builds a head of the serving heads' shape: (B, R) -> (B,), or (B, K) for several outputs."""
        return Head(self.backbone.output_dim, self.head_hidden, outputs)

    @property
    def heads_by_task(self) -> dict[str, TaskHead]:
        """Returns what the outputs mean, by task; a task without an entry is binary, with a logit as its output."""
        heads: dict[str, TaskHead] = {}
        for key, head in self.task_heads.items():
            assert isinstance(head, TaskHead)
            heads[key.removeprefix("task_")] = head
        return heads

    @property
    def label_kinds(self) -> dict[str, LabelKind]:
        """Returns the kind of label of each task."""
        return {task: label.kind for task, label in self.labels.items()}

    def predictions(self, output: StudentOutput) -> dict[str, Tensor]:
        """Returns the predictions of a forward pass, by task: (B,), or (B, W) with a number per class."""
        heads = self.heads_by_task
        predicted: dict[str, Tensor] = {}
        for task, logit in output.logits.items():
            predicted[task] = heads[task].predict(logit) if task in heads else logit.sigmoid()
        return predicted

    @torch.no_grad()
    def start_head(self, task: str, labels: Labels, offset: float = 0.0) -> None:
        """Sets the bias of a task's head from its first labels, of a binary task to their log odds.

        Args:
            offset: the part of the log odds that is due to sampling, see ``LogSampling``.
        """
        last = self._head(task)[-2]
        assert isinstance(last, nn.Linear)
        head = self.heads_by_task.get(task)
        if head is not None:
            last.bias.copy_(head.start(labels.filled(task), labels.weight(task)) - offset)
            head.started.fill_(True)
            return
        positives, total = labels.counts(task)
        # Laplace's rule of succession: finite log odds even where all first labels are equal.
        rate = (positives + 1.0) / (total + 2.0)
        last.bias.fill_(torch.logit(rate) - offset)

    def forward(self, batch: Batch, run_trunk: RunTrunk = run_trunk) -> ModelOutput:
        """Predicts a batch that holds only the model's features (``narrow`` selects them).

        Args:
            run_trunk: calls ``represent``; a training step passes the function of its plan's ``TrunkRunner``.
        """
        tokens_BND, sequences = self.featurizer(batch)
        states: Mapping[str, Tensor] = {}
        inputs = [tokens_BND]
        if self.states is not None:
            with self._precision(tokens_BND):
                states = self.states(tokens_BND, sequences)
        if self.inputs is not None:
            with self._precision(tokens_BND):
                inputs.append(self.inputs(batch.sparse, batch.embeddings))
        layers_BL = self._layer_memory(tokens_BND)
        if layers_BL is not None:
            inputs.append(layers_BL)
        representation_BR = run_trunk(self, inputs, sequences)
        read: Sequence[Tensor] = [representation_BR] * len(self.tasks)
        if self.per_task:
            # A task's head reads the task's representation; strategies, states and embeddings read the mean.
            read, representation_BR = representation_BR.unbind(1), representation_BR.mean(1)
        logits = {task: self.heads[f"task_{task}"](read_BR) for task, read_BR in zip(self.tasks, read, strict=True)}
        states = {entity: state.float() for entity, state in states.items()}
        output = ModelOutput(representation_BR, logits, states)
        return output if self.read_states is None else self.read_states(output, layers_BL, batch, tokens_BND)

    def _layer_memory(self, tokens_BND: Tensor) -> Tensor | None:
        """Returns memory (B, L) for the outputs of the layers that states are read from, if there are any."""
        layers = self.read_states.layers if self.read_states is not None else None
        return tokens_BND.new_empty(tokens_BND.shape[0], layers.width) if layers is not None else None

    def represent(
        self,
        inputs: Sequence[Tensor],
        sequences: Sequences,
        run_backbone: RunBackbone = run_backbone,
        run_encoder: RunEncoder = run_encoder,
    ) -> Tensor:
        """Maps tokens to the representation, (B, R) or per task (B, T, R), through the encoders and the backbone.

        Args:
            inputs: tokens (B, N, D), tokens of teacher inputs (B, M, D), and last the memory (B, L) of layers that are
                read, where there are any.
            sequences: raw sequences by name.
            run_backbone: calls the backbone.
            run_encoder: calls an encoder.
        """
        tokens_BND, *looked_up = inputs
        layers = self.read_states.layers if self.read_states is not None else None
        writing = layers.into(looked_up.pop()) if layers is not None else nullcontext()
        with self._precision(tokens_BND):
            # Sequences and encoders are both in the schema's order.
            encoders = zip(self.encoders.values(), sequences.values(), strict=True) if self.encoders else ()
            more = [*(run_encoder(encoder, sequence, tokens_BND) for encoder, sequence in encoders), *looked_up]
            tokens_BND = torch.cat([tokens_BND, *more], dim=1) if more else tokens_BND
            # A graph that is captured for serving has no other call of the backbone than this.
            raw = sequences if self.reads_sequences else {}
            with writing:
                return run_backbone(self.backbone, tokens_BND, raw).float()

    def _precision(self, tokens_BND: Tensor) -> torch.autocast:
        return torch.autocast(tokens_BND.device.type, torch.bfloat16, enabled=self.low_precision)

    def trunk_networks(self) -> list[Backbone | SequenceEncoder]:
        """Lists the encoders and the backbone."""
        networks: list[Backbone | SequenceEncoder] = []
        for module in (*self.encoders.values(), self.backbone):
            assert isinstance(module, Backbone | SequenceEncoder)
            networks.append(module)
        return networks

    def trunk_parameters(self) -> Iterator[nn.Parameter]:
        """Yields the parameters of the encoders and the backbone."""
        for network in self.trunk_networks():
            yield from network.parameters()

    def multiplications(self, examples: int, sequences: Sequences) -> int:
        """Estimates the trunk's multiplications: each weight once per example, and per event of sequences it reads."""
        events = {name: sequence.values_ED.shape[0] for name, sequence in sequences.items()}
        rows = examples + sum(events.values()) if self.reads_sequences else examples
        *of_encoders, of_backbone = self._weight_counts
        total = rows * of_backbone
        for name, count in zip(events, of_encoders, strict=False):
            total += (examples + events[name]) * count
        return total

    @cached_property
    def _weight_counts(self) -> list[int]:
        """Counts the weights of each encoder and of the backbone; once, because every step asks."""
        return [_weights(module) for module in (*self.encoders.values(), self.backbone)]

    def _head(self, task: str) -> Head:
        head = self.heads[f"task_{task}"]
        assert isinstance(head, Head)
        return head

    def blocks(self) -> list[nn.Module]:
        """Lists the blocks of the encoders and the backbone."""
        blocks: list[nn.Module] = []
        for network in self.trunk_networks():
            blocks += network.blocks()
        return blocks

    def narrow(self, batch: Batch) -> Batch:
        """Returns the batch with this model's features only."""
        narrowed = batch.only(self.feature_names, self.dense_columns)
        return narrowed if self.featurizer.weighs_ids else narrowed.without_id_weights()

    def observe(
        self, batch: Batch, process_group: ProcessGroup = SINGLE_PROCESS, real_examples: int | None = None
    ) -> dict[str, Started]:
        """Updates statistics of dense features and rows of managed ids, after the batch has been predicted.

        Args:
            batch: the batch that has been predicted.
            process_group: the processes that have predicted it together.
            real_examples: how many of its first examples count; all by default. Placeholders after them have no ids.

        Returns:
            The table rows that were reassigned to new ids, by table.
        """
        return self.featurizer.observe(batch, process_group, real_examples)

    def state_sums(self, output: ModelOutput) -> dict[str, Tensor]:
        """Returns the sums over rows of a batch that ``state_losses`` needs of all its rows, by name."""
        return {} if self.read_states is None else self.read_states.sums(output)

    def state_losses(
        self,
        output: ModelOutput,
        labels: Labels,
        sums: Mapping[str, Tensor] | None = None,
        process_group: ProcessGroup = SINGLE_PROCESS,
        counts: Sequence[int] = (),
    ) -> list[Tensor]:
        """Returns the losses of states and stored embeddings, whose gradients do not reach the served model.

        Args:
            output: the forward pass of this process's rows.
            labels: those that the step learns, of the same rows.
            sums: ``state_sums`` of the whole batch; by default of these rows.
            process_group: the processes that have predicted the batch together.
            counts: the number of rows of each process.
        """
        losses = []
        if self.states is not None:
            losses.append(self.states.loss(output.states, output.logits, labels))
        if self.read_states is not None:
            sums = self.read_states.sums(output) if sums is None else sums
            losses += self.read_states.losses(output, labels, sums, process_group, counts)
        return losses

    def parameter_counts(self) -> dict[str, int]:
        """Counts dense parameters, and parameters of embedding tables."""
        dense = sum(parameter.numel() for parameter in self.dense_parameters())
        return {"dense": dense, "sparse": self.featurizer.table_numel}

    def table_parameters(self) -> list[nn.Parameter]:
        """Lists the tables' weights, which a fused optimizer updates in the backward pass."""
        weights: list[nn.Parameter] = []
        for collection in (self.featurizer.pooled, self.featurizer.events):
            if collection is not None:
                weights += collection.parameters()
        return weights

    def dense_parameters(self) -> list[nn.Parameter]:
        """Lists all parameters but the tables' weights, which the dense optimizer updates."""
        tables = set(map(id, self.table_parameters()))
        return [parameter for parameter in self.parameters() if id(parameter) not in tables]


def _check_states(binary: Sequence[str], tasks: Sequence[str]) -> None:
    """Checks that a model with states, or with a compressed embedding, has a task that they can explain."""
    if not binary:
        raise ValueError(
            f"supervision: states and embedding_dim are learned from binary labels, and {', '.join(tasks)} are not: "
            "leave them out, or give the model a binary task; embedding: float16 stores the whole representation"
        )


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
