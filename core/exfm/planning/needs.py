"""What a model needs of a process in a training step, whatever the parallel plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torchrec import EmbeddingBagCollection

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.layout import TableUse, Workload
from exfm.interfaces.schema import FeatureSchema, MultiValuedFeature, SequenceFeature
from exfm.interfaces.transfer_specs import TeacherSpec
from exfm.modeling.build import build_model
from exfm.modeling.embeddings import Lookup
from exfm.modeling.parts import freeze
from exfm.modeling.ranking_model import RankingModel
from exfm.transfer.build import build_strategies

IDS_OF_A_LIST = 10
"""Ids of a multi-valued feature, where nothing is said of it. A sequence counts as full."""


@dataclass(frozen=True)
class Needs:
    """One arm, without memory.

    Attributes:
        model: its served part, on the meta device.
        rows: examples of a batch that one process has, the most of any.
        batch: examples of the whole batch.
        workload: of a process in a step.
        numbers: of an example that every process gets from the others, for the loss of the whole batch.
        transfer: dense numbers that transfer adds, in training alone; all of them are trained.
        managed_ids: that a process looks up in tables with managed ids.
    """

    arm: Arm
    model: RankingModel
    rows: int
    batch: int
    workload: Workload
    numbers: int
    transfer: int
    managed_ids: float


def needs_of(
    experiment: Experiment, arm: Arm, teachers: Mapping[str, TeacherSpec], processes: int, lengths: Mapping[str, int]
) -> Needs:
    """What an arm needs where its batch is dealt to so many processes.

    Raises:
        ConfigError: a component refuses its config, its inputs or its teacher.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        model = build_model(arm, experiment.schema)
        strategies, declared = build_strategies(arm, model, teachers)
    freeze(model, [part for one in declared for part in one.frozen_parts])
    batch = arm.config.batch_size
    rows = math.ceil(batch / processes)
    transfer = sum(parameter.numel() for strategy in strategies for parameter in strategy.parameters())
    states = len(arm.config.supervision.states) * arm.config.supervision.state_dim
    numbers = 2 * len(arm.tasks) + states  # logits, labels
    read = model.read_states
    numbers += read.exchanged_numbers if read is not None else 0
    numbers += model.backbone.output_dim if strategies or (read is not None and read.needs_representation) else 0
    for name in {name for spec in arm.config.transfer for name in spec.config.teachers}:
        numbers += 2 * len(teachers[name].tasks) + (teachers[name].embedding_dim or 0)
    uses = tuple(_uses(model, rows, lengths))
    managed = experiment.schema.select(arm.config.features).managed()
    ids = sum(use.ids for use in uses if use.table.removeprefix("table_") in managed)
    workload = Workload(uses, transfer, arm.config.optimizer.dense.accumulate)
    return Needs(arm, model, rows, batch, workload, numbers, transfer, ids)


def lengths_of(schema: FeatureSchema, given: Mapping[str, int]) -> dict[str, int]:
    """Ids or events of every list in an example: what is given, or all that are kept of a sequence.

    Raises:
        ConfigError: there is no such list, or it does not keep as many.
    """
    lists = {one.name: one for one in schema.features if isinstance(one, MultiValuedFeature | SequenceFeature)}
    for name, length in given.items():
        if name not in lists:
            raise ConfigError(
                f"--length {name}={length}: the data has no multi-valued feature or sequence {name!r}."
                f"{suggestion(name, lists)}"
            )
        one = lists[name]
        if isinstance(one, SequenceFeature) and length > one.max_length:
            raise ConfigError(f"--length {name}={length}: the model keeps the newest {one.max_length} events")
    return {
        name: given.get(name, one.max_length if isinstance(one, SequenceFeature) else IDS_OF_A_LIST)
        for name, one in lists.items()
    }


def _uses(model: RankingModel, rows: int, lengths: Mapping[str, int]) -> Iterator[TableUse]:
    featurizer = model.featurizer

    def ids(lookup: Lookup) -> int:
        return rows * lengths.get(lookup.key, 1)

    pooled, events = featurizer.pooled, featurizer.events
    if pooled is not None:
        grouped: dict[str, list[Lookup]] = {}
        for lookup in pooled.order:
            grouped.setdefault(lookup.table, []).append(lookup)
        for table, group in grouped.items():
            yield _use("featurizer.pooled.bags", pooled.bags, table, len(group), rows, sum(map(ids, group)))
    if events is not None:
        # Bags of every key: an example's, or an event's own; short keys are filled up with empty ones.
        bags = {
            table: sum(rows if lookup.field is None else ids(lookup) for lookup in group)
            for table, group in events.groups.items()
        }
        for table, group in events.groups.items():
            count = max(bags.values())
            yield _use("featurizer.events.bags", events.bags, table, 1, count, sum(map(ids, group)))


def _use(path: str, bags: EmbeddingBagCollection, table: str, keys: int, count: int, ids: int) -> TableUse:
    config = next(one for one in bags.embedding_bag_configs() if one.name.removeprefix("table_") == table)
    return TableUse(path, config.name, config.num_embeddings, config.embedding_dim, keys, count, ids)
