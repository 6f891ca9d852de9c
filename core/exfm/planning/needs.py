"""Computes the needs of a model in a training step that do not depend on the parallel plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torchrec import EmbeddingBagCollection

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.distillation_strategy import DistillationStrategy
from exfm.interfaces.layout import TableUse, Workload
from exfm.interfaces.schema import FeatureSchema, MultiValuedFeature, SequenceFeature
from exfm.interfaces.transfer_specs import TeacherSpec
from exfm.interfaces.transfer_strategy import TransferStrategy
from exfm.modeling.build import build_model
from exfm.modeling.embeddings import Lookup
from exfm.modeling.parts import freeze
from exfm.modeling.ranking_model import RankingModel
from exfm.transfer.build import build_strategies

DEFAULT_LIST_LENGTH = 10
"""Ids of a multi-valued feature per example, unless `--length` says otherwise. A sequence counts as full."""


@dataclass(frozen=True)
class Needs:
    """Describes an arm, whose model is on the meta device and takes no memory.

    Attributes:
        arm: the arm.
        model: its served layers, on the meta device.
        rows: largest number of a batch's examples in a process.
        batch: number of a batch's examples in all processes.
        workload: workload of a process in a step.
        numbers: numbers per example that are all-gathered for losses that need the whole batch.
        transfer: number of dense parameters that transfer adds in training; all of them are trained.
        managed_ids: number of ids that a process looks up in tables with managed ids.
    """

    arm: Arm
    model: RankingModel
    rows: int
    batch: int
    workload: Workload
    numbers: int
    transfer: int
    managed_ids: float


def compute_needs(
    experiment: Experiment, arm: Arm, teachers: Mapping[str, TeacherSpec], processes: int, lengths: Mapping[str, int]
) -> Needs:
    """Computes the needs of an arm whose batch is split between processes.

    Args:
        experiment: the experiment.
        arm: an arm of the experiment.
        teachers: specs of the teachers' outputs, by name.
        processes: number of processes.
        lengths: ids of each multi-valued feature and events of each sequence, per example.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """
    # On the meta device, because a planned model may not fit into this machine.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(arm, experiment.schema)
        strategies, declared = build_strategies(arm, model, teachers)
    frozen: list[str] = []
    for declaration in declared:
        frozen += declaration.frozen_parts
    freeze(model, frozen)
    batch = arm.config.batch_size
    rows = math.ceil(batch / processes)
    transfer = sum(parameter.numel() for strategy in strategies for parameter in strategy.parameters())
    read = model.read_states
    numbers = 0 if read is None else read.exchanged_numbers
    whole = [number for number, strategy in enumerate(strategies) if _gets_whole_batches(strategy)]
    if whole:
        heads = model.heads_by_task
        outputs = sum(heads[task].num_outputs if task in heads else 1 for task in arm.tasks)
        states = len(arm.config.supervision.states) * arm.config.supervision.state_dim
        numbers += outputs + len(arm.tasks) + states + model.backbone.output_dim  # with the labels
    for number in whole:
        strategy = strategies[number]
        teacher = teachers[arm.config.transfer[number].config.teacher]
        # Soft labels with their masks.
        soft = sum(teacher.labels[task].width if task in teacher.labels else 1 for task in strategy.tasks)
        numbers += soft + len(strategy.tasks) + (teacher.embedding_dim or 0) + strategy.reads_age
        numbers += len(strategy.reads_features) * arm.config.embedding_dim
    uses = tuple(_uses(model, rows, lengths))
    managed = experiment.schema.select(arm.config.features).managed()
    ids = sum(use.ids for use in uses if use.table.removeprefix("table_") in managed)
    workload = Workload(uses, transfer, arm.config.optimizer.dense.accumulate)
    return Needs(arm, model, rows, batch, workload, numbers, transfer, ids)


def _gets_whole_batches(strategy: TransferStrategy) -> bool:
    """Returns whether every process computes a strategy's loss of the whole batch, in more than the first batches."""
    if not isinstance(strategy, DistillationStrategy):
        return False
    try:
        return not strategy.decomposes
    except RuntimeError:
        # It reads a buffer, which has no value on the meta device: a flag that its first batches set.
        return False


def list_lengths(schema: FeatureSchema, overrides: Mapping[str, int]) -> dict[str, int]:
    """Returns the number of ids or events per example for every multi-valued feature and sequence.

    Args:
        schema: the stream's schema.
        overrides: lengths by name; others have ``DEFAULT_LIST_LENGTH`` or are full.

    Raises:
        ConfigError: there is no such list, or a length exceeds its maximum.
    """
    lists: dict[str, MultiValuedFeature | SequenceFeature] = {}
    for feature in schema.features:
        if isinstance(feature, MultiValuedFeature | SequenceFeature):
            lists[feature.name] = feature
    for name, length in overrides.items():
        if name not in lists:
            raise ConfigError(
                f"--length {name}={length}: the data has no multi-valued feature or sequence {name!r}."
                f"{suggestion(name, lists)}"
            )
        feature = lists[name]
        if isinstance(feature, SequenceFeature) and length > feature.max_length:
            raise ConfigError(f"--length {name}={length}: the model keeps the newest {feature.max_length} events")
    lengths: dict[str, int] = {}
    for name, feature in lists.items():
        default = feature.max_length if isinstance(feature, SequenceFeature) else DEFAULT_LIST_LENGTH
        lengths[name] = overrides.get(name, default)
    return lengths


def _uses(model: RankingModel, rows: int, lengths: Mapping[str, int]) -> Iterator[TableUse]:
    """Yields the use of each table by a process in a step."""
    featurizer = model.featurizer

    def ids(lookup: Lookup) -> int:
        return rows * lengths.get(lookup.key, 1)

    def bag_count(lookup: Lookup) -> int:
        return rows if lookup.field is None else ids(lookup)

    pooled, events = featurizer.pooled, featurizer.events
    if pooled is not None:
        grouped: dict[str, list[Lookup]] = {}
        for lookup in pooled.order:
            grouped.setdefault(lookup.table, []).append(lookup)
        for table, group in grouped.items():
            yield _use("featurizer.pooled.bags", pooled.bags, table, len(group), rows, sum(map(ids, group)))
    if events is not None:
        # A key has a bag per example, or a bag per event. Shorter keys are padded with empty bags to the longest.
        longest = max((sum(map(bag_count, group)) for group in events.groups.values()), default=0)
        for table, group in events.groups.items():
            yield _use("featurizer.events.bags", events.bags, table, 1, longest, sum(map(ids, group)))


def _use(path: str, bags: EmbeddingBagCollection, table: str, keys: int, count: int, ids: int) -> TableUse:
    configs = {config.name.removeprefix("table_"): config for config in bags.embedding_bag_configs()}
    config = configs[table]
    rows, width = config.num_embeddings, config.embedding_dim
    return TableUse(path, config.name, rows, width, keys, count, ids, bags.is_weighted())
