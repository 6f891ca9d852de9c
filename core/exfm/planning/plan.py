"""A plan: where every model goes on a cluster, what each process holds and sends, and whether it fits.

Legend: P processes of a sharding group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.layout import Cluster, Collective, Layout, LayoutEstimator, TableSharding
from exfm.interfaces.parallel_plan import TableOptimizer
from exfm.planning.activations import activation_bytes
from exfm.planning.needs import Needs, lengths_of, needs_of
from exfm.reporting.formatting import gigabytes
from exfm.training.trainer import check_managed
from exfm.transfer.build import teacher_specs

RESERVED = 0.15
"""Share of a process's memory that is left to the device's context, the communication library and fragments."""

_FLOAT, _ID = 4, 8
_DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
PASSING = ("activations", "communication")
"""What is there during a model's step only; the rest of every model is there all the time."""

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ModelPlan:
    """One model on a cluster.

    Attributes:
        memory: bytes of each process of a group, (P,), by what they are for.
    """

    needs: Needs
    layout: Layout
    collectives: tuple[Collective, ...]
    memory: Mapping[str, Sizes]

    def steady(self) -> Sizes:
        """Bytes that are there all the time, (P,)."""
        return sum_of([size for name, size in self.memory.items() if name not in PASSING], self.layout.group)

    def passing(self) -> Sizes:
        """Bytes of a step, (P,)."""
        return sum_of([self.memory[name] for name in PASSING], self.layout.group)


@dataclass(frozen=True)
class Plan:
    """Models that are trained in one job.

    Attributes:
        problem: why they do not fit; nothing where they do.
    """

    name: str
    cluster: Cluster
    models: Mapping[str, ModelPlan]
    problem: str

    @property
    def group(self) -> int:
        """Processes of a group."""
        return next(iter(self.models.values())).layout.group

    def needed(self) -> Sizes:
        """Bytes that each process of a group needs, (P,): all models, and the step that needs most."""
        steady = sum_of([model.steady() for model in self.models.values()], self.group)
        step: Sizes = np.stack([model.passing() for model in self.models.values()]).max(axis=0)
        return steady + step


def plan(
    experiment: Experiment, cluster: Cluster, model: str | None = None, lengths: Mapping[str, int] | None = None
) -> Plan:
    """Plans an experiment's models, or one of them.

    Args:
        cluster: has a memory.
        model: its name; all of the experiment by default, as `exfm run` trains them.
        lengths: mean ids of multi-valued features and events of sequences; see ``lengths_of``.

    Raises:
        ConfigError: the plan or a component refuses, or there is no such model.
    """
    lists = lengths_of(experiment.schema, lengths or {})
    teachers = teacher_specs(experiment)
    arms = _chosen(experiment, model)
    needs = [needs_of(experiment, arm, teachers, cluster.count, lists) for arm in arms]
    problem = ""
    try:
        layouts = [_layout(experiment, one, cluster) for one in needs]
    except ValueError as error:
        problem = str(error)
        try:
            layouts = [_layout(experiment, one, replace(cluster, memory=None)) for one in needs]
        except ValueError as refused:
            raise ConfigError(f"parallel: {refused}") from refused
    planned = {
        one.arm.name: _planned(one, layout, cluster, experiment, lists)
        for one, layout in zip(needs, layouts, strict=True)
    }
    made = Plan(experiment.config.parallel.name, cluster, planned, problem)
    return made if problem else replace(made, problem=_overflow(made))


def _chosen(experiment: Experiment, model: str | None) -> list[Arm]:
    names = [arm.name for arm in experiment.arms]
    if model is not None and model not in names:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, names)}")
    return [arm for arm in experiment.arms if model in (None, arm.name)]


def _layout(experiment: Experiment, needs: Needs, cluster: Cluster) -> Layout:
    spec = experiment.config.parallel
    check_managed(needs.arm, needs.model, spec.component)
    if not isinstance(spec.component, LayoutEstimator):
        raise ConfigError(f"parallel: {spec.name} does not tell where it would put a model")
    table_optimizer = needs.arm.config.optimizer.tables
    layout: Layout = spec.component.estimate_layout(spec.config, needs.model, table_optimizer, needs.workload, cluster)
    return layout


def _planned(
    needs: Needs, layout: Layout, cluster: Cluster, experiment: Experiment, lists: Mapping[str, int]
) -> ModelPlan:
    collectives = layout.collectives
    if cluster.count > 1:
        whole = needs.batch * needs.numbers * _FLOAT
        # Buffers: as it arrives, concatenated, and its gradient.
        outputs = Collective.all_gather(
            "outputs and labels of the whole batch", whole, cluster.count, buffer_bytes=3 * whole
        )
        collectives = (*collectives, outputs)
    if cluster.count > 1 and needs.managed_ids:
        ids = int(needs.managed_ids * cluster.count) * _ID
        # Buffers: as they arrive, and by table.
        managed = Collective.all_gather("ids of managed tables", ids, cluster.count, buffer_bytes=2 * ids)
        collectives = (*collectives, managed)
    memory = _kept(needs, layout)
    buffers = [np.asarray(collective.buffer_bytes, np.int64) for collective in collectives]
    memory["communication"] = sum_of(buffers, layout.group)
    activations = activation_bytes(needs.model, experiment.schema, needs.rows, lists)
    memory["activations"] = np.full(layout.group, activations)
    return ModelPlan(needs, layout, collectives, memory)


def _kept(needs: Needs, layout: Layout) -> dict[str, Sizes]:
    """What a process of a group keeps: tables, dense parameters, their gradients, and both optimizers' states."""
    tables, state = np.zeros((2, layout.group), np.int64)
    for place in layout.tables:
        for shard in place.shards:
            tables[shard.process] += shard.rows * shard.columns * _FLOAT
            state[shard.process] += (
                shard.rows * state_numbers(needs.arm.config.optimizer.tables, shard.columns) * _FLOAT
            )
    sparse = {place.collection for place in layout.tables}
    dense, trained = np.zeros((2, layout.group), np.int64)
    for name, tensor in needs.model.state_dict(keep_vars=True).items():
        if not any(name.startswith(f"{path}.") for path in sparse):
            numbers = np.asarray(layout.dense.get(name, (tensor.numel(),)), np.int64)
            dense = dense + numbers * tensor.element_size()
            trained = trained + numbers * tensor.requires_grad
    dense, trained = dense + needs.transfer * _FLOAT, trained + needs.transfer
    states = _DENSE_STATES[needs.arm.config.optimizer.dense.name]
    return {
        "tables": tables,
        "table_optimizer": state,
        "dense": dense,
        "gradients": trained * _FLOAT,
        "dense_optimizer": trained * states * _FLOAT,
    }


def state_numbers(optimizer: TableOptimizer, columns: int) -> int:
    """What the tables' optimizer keeps for a row of a shard."""
    return {"sgd": 0, "rowwise_adagrad": 1, "adagrad": columns}[optimizer.name]


def usable(cluster: Cluster) -> int:
    """Bytes of a process that a model may take."""
    assert cluster.memory is not None
    return int(cluster.memory * (1 - RESERVED))


def _overflow(made: Plan) -> str:
    needed, room = made.needed(), usable(made.cluster)
    worst = int(needed.argmax())
    if needed[worst] <= room:
        return ""
    return (
        f"process {worst} of a group needs {gigabytes(needed[worst])}, and may take {gigabytes(room)}: "
        f"{RESERVED:.0%} of its memory is left free"
    )


def sum_of(sizes: Sequence[Sizes], group: int) -> Sizes:
    """The sum of sizes by process, (P,); a size may be one number for all."""
    total = np.zeros(group, np.int64)
    for size in sizes:
        total = total + size
    return total


def imbalance(sizes: Sizes) -> float:
    """The largest over the mean, 1 for what is equal everywhere."""
    return float(sizes.max() / sizes.mean()) if sizes.any() else 1.0


def as_dict(made: Plan, remedies: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """The plan as JSON. Bytes are those of a process; ``exfm plan --json`` prints this."""
    count, group = made.cluster.count, made.group
    return {
        "plan": made.name,
        "world_size": count,
        "sharding_group": group,
        "replicas": count // group,
        "per_machine": made.cluster.per_machine,
        "memory_bytes": made.cluster.memory,
        "usable_bytes": usable(made.cluster),
        "settings": {f"parallel.{key}": value for key, value in _settings(made).items()},
        "fits": not made.problem,
        "problem": made.problem,
        "remedies": list(remedies),
        "needed_bytes": made.needed().tolist(),
        "models": {name: _model_dict(model, made) for name, model in made.models.items()},
    }


def _settings(made: Plan) -> Mapping[str, Any]:
    return next(iter(made.models.values())).layout.settings


def _model_dict(model: ModelPlan, made: Plan) -> dict[str, Any]:
    needs, layout = model.needs, model.layout
    sent = sum_of([np.asarray(one.sent_bytes, np.int64) // one.interval for one in model.collectives], layout.group)
    tables = int(model.memory["tables"].sum() + model.memory["table_optimizer"].sum())
    return {
        "batch_size": needs.batch,
        "examples_per_process": needs.rows,
        "parameters": needs.model.parameter_counts(),
        "tables": [_table_dict(place, needs) for place in layout.tables],
        "memory": {name: sizes.tolist() for name, sizes in model.memory.items()},
        # arXiv 2508.03854: S (M - 1) / T for tables of size S on T processes in M groups.
        "replication_bytes": tables * (made.cluster.count // layout.group - 1) // made.cluster.count,
        "exchanges": [
            {
                "name": one.name,
                "processes": one.processes,
                "every": one.interval,
                "sent_bytes": np.broadcast_to(one.sent_bytes, layout.group).tolist(),
                "held_bytes": np.broadcast_to(one.buffer_bytes, layout.group).tolist(),
            }
            for one in model.collectives
        ],
        "sent_bytes_per_step": sent.tolist(),
        "imbalance": {
            "table_memory": imbalance(model.memory["tables"] + model.memory["table_optimizer"]),
            "sent": imbalance(sent),
        },
    }


def _table_dict(place: TableSharding, needs: Needs) -> dict[str, Any]:
    use = next(one for one in needs.workload.tables if (one.collection, one.table) == (place.collection, place.table))
    optimizer = needs.arm.config.optimizer.tables
    state = sum(shard.rows * state_numbers(optimizer, shard.columns) for shard in place.shards) * _FLOAT
    return {
        "table": place.table.removeprefix("table_"),
        "rows": use.rows,
        "width": use.width,
        "bytes": use.rows * use.width * _FLOAT,
        "optimizer_bytes": state,
        "ids_per_process": use.ids,
        "sharding": place.sharding_type,
        "shards": [vars(shard) for shard in place.shards],
    }
