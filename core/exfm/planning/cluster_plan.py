"""Plans models on a cluster: the layout, bytes held and sent by each process, and whether the models fit.

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
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.learning.trainer import check_managed
from exfm.mappings import add_prefix, by_name
from exfm.planning.activations import forward_cost
from exfm.planning.needs import Needs, compute_needs, list_lengths
from exfm.reporting.formatting import gigabytes
from exfm.transfer.build import teacher_specs

RESERVED = 0.15
"""Share of a process's memory for the device's context, the communication library and fragmentation."""

_FLOAT, _ID = 4, 8  # bytes of a float32 and of an int64
# State tensors per parameter: moments of Adam, sums of squares of Adagrad.
_DENSE_STATES = {"adam": 2, "adamw": 2, "adagrad": 1, "sgd": 0}
TEMPORARY = ("activations", "communication")
"""Memory that is allocated only during a model's step; all other memory is held permanently."""

Sizes = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ModelPlan:
    """Describes a model on a cluster.

    Attributes:
        needs: needs of the model.
        layout: placement of its tables and dense parameters.
        collectives: collective operations of a step.
        memory: bytes of each process of a group, (P,), by purpose.
        flops: FLOPs of the forward pass of a process in a step.
    """

    needs: Needs
    layout: Layout
    collectives: tuple[Collective, ...]
    memory: Mapping[str, Sizes]
    flops: int

    def permanent(self) -> Sizes:
        """Returns the bytes that are held permanently, (P,)."""
        return sum_sizes([size for name, size in self.memory.items() if name not in TEMPORARY], self.layout.group)

    def temporary(self) -> Sizes:
        """Returns the bytes that are allocated only during a step, (P,)."""
        return sum_sizes([self.memory[name] for name in TEMPORARY], self.layout.group)


@dataclass(frozen=True)
class ClusterPlan:
    """Describes the models that are trained in a job.

    Attributes:
        name: name of the parallel plan.
        cluster: the cluster.
        models: plans of the models, by name.
        problem: reason why the models do not fit; empty if they fit.
    """

    name: str
    cluster: Cluster
    models: Mapping[str, ModelPlan]
    problem: str

    @property
    def group(self) -> int:
        """Returns the number of processes of a group."""
        return next(iter(self.models.values())).layout.group

    def needed(self) -> Sizes:
        """Returns the bytes that each process of a group needs, (P,)."""
        permanent, temporary = np.zeros((2, self.group), np.int64)
        for model in self.models.values():
            permanent = permanent + model.permanent()
            # The models of a job take their steps in turn, so only the largest step counts.
            temporary = np.maximum(temporary, model.temporary())
        return np.asarray(permanent + temporary)


def plan(
    experiment: Experiment, cluster: Cluster, model: str | None = None, lengths: Mapping[str, int] | None = None
) -> ClusterPlan:
    """Plans the models of an experiment on a cluster.

    Args:
        experiment: the experiment.
        cluster: cluster with a memory size.
        model: name of the only model to plan; by default all models, as `exfm run` trains them.
        lengths: mean ids of multi-valued features and events of sequences; see ``list_lengths``.

    Raises:
        ConfigError: the parallel plan or a component rejects its config, or there is no such model.
    """
    lists = list_lengths(experiment.schema, lengths or {})
    teachers = teacher_specs(experiment)
    arms = _select_arms(experiment, model)
    all_needs = [compute_needs(experiment, arm, teachers, cluster.count, lists) for arm in arms]
    problem = ""
    try:
        layouts = _layouts(experiment, all_needs, cluster)
    except ValueError as error:
        problem = str(error)
        # Without a memory limit there is a layout to show, unless the error is not about memory.
        unlimited = replace(cluster, memory=None)
        try:
            layouts = _layouts(experiment, all_needs, unlimited)
        except ValueError as refused:
            raise ConfigError(f"parallel: {refused}") from refused
    models: dict[str, ModelPlan] = {}
    for needs, layout in zip(all_needs, layouts, strict=True):
        models[needs.arm.name] = _plan_model(needs, layout, cluster, experiment, lists)
    planned = ClusterPlan(experiment.config.parallel.name, cluster, models, problem)
    if not problem:
        planned = replace(planned, problem=_overflow(planned))
    return planned


def _select_arms(experiment: Experiment, model: str | None) -> list[Arm]:
    if model is None:
        return list(experiment.arms)
    arms = by_name(experiment.arms)
    if model not in arms:
        raise ConfigError(f"--model: no model is called {model!r}.{suggestion(model, arms)}")
    return [arms[model]]


def _layouts(experiment: Experiment, all_needs: Sequence[Needs], cluster: Cluster) -> list[Layout]:
    return [_layout(experiment, needs, cluster) for needs in all_needs]


def _layout(experiment: Experiment, needs: Needs, cluster: Cluster) -> Layout:
    spec = experiment.config.parallel
    check_managed(needs.arm, needs.model, spec.component)
    if not isinstance(spec.component, LayoutEstimator):
        raise ConfigError(f"parallel: {spec.name} does not tell where it would put a model")
    table_optimizer = needs.arm.config.optimizer.tables
    layout: Layout = spec.component.estimate_layout(spec.config, needs.model, table_optimizer, needs.workload, cluster)
    return layout


def _plan_model(
    needs: Needs, layout: Layout, cluster: Cluster, experiment: Experiment, lists: Mapping[str, int]
) -> ModelPlan:
    collectives = layout.collectives
    if cluster.count > 1 and needs.numbers:
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
    memory = _permanent_memory(needs, layout)
    buffers = [np.asarray(collective.buffer_bytes, np.int64) for collective in collectives]
    memory["communication"] = sum_sizes(buffers, layout.group)
    cost = forward_cost(needs.model, experiment.schema, needs.rows, lists)
    memory["activations"] = np.full(layout.group, cost.saved_bytes)
    return ModelPlan(needs, layout, collectives, memory, cost.flops)


def _permanent_memory(needs: Needs, layout: Layout) -> dict[str, Sizes]:
    """Returns the bytes of tables, dense parameters, their gradients, and both optimizers' states, (P,) each."""
    table_optimizer = needs.arm.config.optimizer.tables
    tables, state = np.zeros((2, layout.group), np.int64)
    for sharding in layout.tables:
        for shard in sharding.shards:
            tables[shard.process] += shard.rows * shard.columns * _FLOAT
            state[shard.process] += shard.rows * state_numbers(table_optimizer, shard.columns) * _FLOAT
    collections = tuple(f"{sharding.collection}." for sharding in layout.tables)
    dense, trained = np.zeros((2, layout.group), np.int64)
    for name, tensor in needs.model.state_dict(keep_vars=True).items():
        if not name.startswith(collections):
            # Parameters that the layout does not mention are replicated.
            numbers = np.asarray(layout.dense.get(name, (tensor.numel(),)), np.int64)
            dense = dense + numbers * tensor.element_size()
            trained = trained + numbers * tensor.requires_grad
    optimizer = needs.arm.config.optimizer.dense
    # Not of parameters that transfer adds, because no snapshot publishes them.
    averages = trained * (optimizer.ema is not None)
    dense, trained = dense + needs.transfer * _FLOAT, trained + needs.transfer
    states = _DENSE_STATES[optimizer.name]
    return {
        "tables": tables,
        "table_optimizer": state,
        "dense": dense,
        "gradients": trained * _FLOAT,
        "dense_optimizer": (trained * states + averages) * _FLOAT,
    }


def state_numbers(optimizer: TableOptimizer, columns: int) -> int:
    """Returns the number of state values of the tables' optimizer for a row of a shard."""
    return {"sgd": 0, "rowwise_adagrad": 1, "adagrad": columns}[optimizer.name]


def usable(cluster: Cluster) -> int:
    """Returns the bytes of a process that models may use."""
    assert cluster.memory is not None
    return int(cluster.memory * (1 - RESERVED))


def _overflow(planned: ClusterPlan) -> str:
    """Returns a message if the models need more memory than is usable, or an empty string."""
    needed, room = planned.needed(), usable(planned.cluster)
    worst = int(needed.argmax())
    if needed[worst] <= room:
        return ""
    return (
        f"process {worst} of a group needs {gigabytes(needed[worst])}, and may take {gigabytes(room)}: "
        f"{RESERVED:.0%} of its memory is left free"
    )


def sum_sizes(sizes: Sequence[Sizes], group: int) -> Sizes:
    """Sums sizes by process, (P,); a size may be a scalar for all processes."""
    # Adding broadcasts scalars, which `np.sum` of a list would not.
    total = np.zeros(group, np.int64)
    for size in sizes:
        total = total + size
    return total


def imbalance(sizes: Sizes) -> float:
    """Returns the largest size divided by the mean, which is 1 if all sizes are equal."""
    return float(sizes.max() / sizes.mean()) if sizes.any() else 1.0


def as_dict(planned: ClusterPlan, remedies: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Converts a plan to JSON, as ``exfm plan --json`` prints it. Bytes are those of a process."""
    count, group = planned.cluster.count, planned.group
    return {
        "plan": planned.name,
        "world_size": count,
        "sharding_group": group,
        "replicas": count // group,
        "per_machine": planned.cluster.per_machine,
        "memory_bytes": planned.cluster.memory,
        "usable_bytes": usable(planned.cluster),
        "settings": add_prefix("parallel.", _settings(planned)),
        "fits": not planned.problem,
        "problem": planned.problem,
        "remedies": list(remedies),
        "needed_bytes": planned.needed().tolist(),
        "models": {name: _model_dict(model, planned.cluster.count) for name, model in planned.models.items()},
    }


def _settings(planned: ClusterPlan) -> Mapping[str, Any]:
    """Returns the settings with which a run has this layout; they are equal for all models."""
    return next(iter(planned.models.values())).layout.settings


def _model_dict(model: ModelPlan, processes: int) -> dict[str, Any]:
    needs, layout = model.needs, model.layout
    # Operations that run every n-th step count with an n-th of their bytes.
    per_step = [np.asarray(collective.sent_bytes, np.int64) // collective.interval for collective in model.collectives]
    sent = sum_sizes(per_step, layout.group)
    tables = int(model.memory["tables"].sum() + model.memory["table_optimizer"].sum())
    return {
        "batch_size": needs.batch,
        "examples_per_process": needs.rows,
        "parameters": needs.model.parameter_counts(),
        "forward_flops_per_process": model.flops,
        "tables": [_table_dict(sharding, needs) for sharding in layout.tables],
        "memory": {name: sizes.tolist() for name, sizes in model.memory.items()},
        # arXiv 2508.03854: S (M - 1) / T for tables of size S on T processes in M groups.
        "replication_bytes": tables * (processes // layout.group - 1) // processes,
        "serving_lookups": needs.arm.lookups,
        "exchanges": [_exchange_dict(collective, layout.group) for collective in model.collectives],
        "sent_bytes_per_step": sent.tolist(),
        "imbalance": {
            "table_memory": imbalance(model.memory["tables"] + model.memory["table_optimizer"]),
            "sent": imbalance(sent),
        },
    }


def _exchange_dict(collective: Collective, group: int) -> dict[str, Any]:
    return {
        "name": collective.name,
        "processes": collective.processes,
        "every": collective.interval,
        "sent_bytes": np.broadcast_to(collective.sent_bytes, group).tolist(),
        "held_bytes": np.broadcast_to(collective.buffer_bytes, group).tolist(),
    }


def _table_dict(sharding: TableSharding, needs: Needs) -> dict[str, Any]:
    uses = {(use.collection, use.table): use for use in needs.workload.tables}
    use = uses[sharding.collection, sharding.table]
    optimizer = needs.arm.config.optimizer.tables
    state = sum(shard.rows * state_numbers(optimizer, shard.columns) for shard in sharding.shards) * _FLOAT
    return {
        "table": sharding.table.removeprefix("table_"),
        "rows": use.rows,
        "width": use.width,
        "bytes": use.rows * use.width * _FLOAT,
        "optimizer_bytes": state,
        "ids_per_process": use.ids,
        "sharding": sharding.sharding_type,
        "shards": list(map(vars, sharding.shards)),
    }
