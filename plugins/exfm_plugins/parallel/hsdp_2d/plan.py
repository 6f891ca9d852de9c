"""Two-dimensional parallelism: tables sharded inside groups of processes, and averaged over the groups."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from pydantic import Field, PositiveInt
from torch import nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import ShardingEnv2D

import exfm
from exfm.parallel import select_collectives
from exfm_plugins.parallel.hsdp.layout import group_size
from exfm_plugins.parallel.hsdp.plan import Hsdp
from exfm_plugins.parallel.hsdp_2d.layout import TableTraffic, table_shardings
from exfm_plugins.parallel.hsdp_2d.model import Hsdp2dModel
from exfm_plugins.parallel.hsdp_2d.placement import Placement, ShardingType, TableConstraint
from exfm_plugins.parallel.hsdp_2d.shards import CollectionShards

_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def moment_scaled(tables: exfm.parallel.TableOptimizer, replicas: int) -> exfm.parallel.TableOptimizer:
    """Scales the options of AdaGrad so that it divides by ``sqrt(v / replicas) + eps`` instead of ``sqrt(v) + eps``.

    See arXiv 2508.03854. SGD has no moments and stays as it is.
    """
    if tables.name == "sgd":
        return tables
    # lr / (sqrt(v / r) + eps) equals lr sqrt(r) / (sqrt(v) + eps sqrt(r)).
    scale = math.sqrt(replicas)
    return tables.model_copy(update={"lr": tables.lr * scale, "eps": tables.eps * scale})


def check_communication(communication: str, device: torch.device) -> None:
    """Checks that a device can send rows in a dtype.

    Raises:
        ValueError: it cannot.
    """
    if communication == "fp8" and device.type == "cpu":
        raise ValueError("communication: fp8 needs GPUs; allowed on a CPU: fp32, fp16, bf16")


class Hsdp2d(Hsdp):
    """2-D sparse parallelism (arXiv 2508.03854): `hsdp` for dense layers, and tables that are sharded inside a group.

    The processes form ``replicas`` groups. Inside a group TorchRec's planner gives each process its shards of the
    tables; ids and looked-up rows are sent inside the group only. The optimizer of tables runs in the backward pass of
    the group's rows, so the groups' tables diverge. Their weights and optimizer states are averaged every
    ``sync_every`` steps and before every snapshot. With a single group losses and predictions are those of `single`;
    with several groups they are equal where tables have SGD and are averaged at every step.

    A group sees a smaller batch, whose gradients vary more. Moment scaling has AdaGrad divide by
    ``sqrt(v / replicas) + eps`` instead of ``sqrt(v) + eps``.
    """

    name: ClassVar[str] = "hsdp_2d"

    class Config(Hsdp.Config):
        """Fields of `hsdp_2d`."""

        sync_every: PositiveInt = Field(
            1, description="Steps after which tables are averaged over the replicas: their weights, and AdaGrad's sums."
        )
        moment_scale: bool = Field(
            True, description="Whether AdaGrad of tables divides its sum of squares by the number of replicas."
        )
        communication: Literal["fp32", "fp16", "bf16", "fp8"] = Field(
            "fp32", description="The dtype in which looked-up rows and their gradients are sent; fp8 needs GPUs."
        )
        sharding: tuple[ShardingType, ...] = Field(
            (), description="Sharding types of tables that are not in `tables`; empty: all that the device has."
        )
        tables: dict[str, TableConstraint] = Field(
            default_factory=dict, description="Limits of the planner's choices, by the table's name."
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._sync_every, self._moment_scale = config.sync_every, config.moment_scale
        self._replicas = self.mesh["replicate"].size()
        size = self.mesh["shard"].size()
        first = self.process_group.rank // size * size  # the ranks of a group are successive
        otherwise = TableConstraint(sharding=config.sharding)
        self._placement = Placement(self.process_group, size, first, self.device, config.tables, otherwise)
        self._env = ShardingEnv2D(
            self.mesh.get_group("shard"),
            self.mesh.get_group("replicate"),
            dist.group.WORLD,
            self.mesh,
            node_group_size=self._placement.local_size,
            use_inter_host_allreduce=True,
        )
        check_communication(config.communication, self.device)
        self._codecs = None
        if config.communication != "fp32":
            precision = CommType(config.communication)
            self._codecs = get_qcomm_codecs_registry(QCommsConfig(precision, precision), device=self.device)

    @classmethod
    def estimate_layout(
        cls,
        config: Any,
        model: nn.Module,
        table_optimizer: exfm.parallel.TableOptimizer,
        workload: exfm.parallel.Workload,
        cluster: exfm.parallel.Cluster,
    ) -> exfm.parallel.Layout:
        """Places tables in a group as TorchRec's planner does, on GPUs unless the device is a CPU, and shards blocks.

        See ``exfm.parallel.LayoutEstimator``.
        """
        size, settings = group_size(cls.name, config.replicas, cluster)
        device = torch.device("cpu" if config.device == "cpu" else "cuda")
        check_communication(config.communication, device)
        otherwise = TableConstraint(sharding=config.sharding)
        placement = Placement(exfm.parallel.ProcessGroup(), size, 0, device, config.tables, otherwise, cluster)
        tables = table_shardings(placement.search(model, EmbeddingBagCollectionSharder(), table_optimizer.name))
        traffic = TableTraffic(workload, tables, size, min(size, cluster.per_machine), config.communication)
        dense, collectives = cls._estimate_dense(config, model, workload, cluster.count, size)
        average = traffic.average(table_optimizer.name, cluster.count // size, config.sync_every)
        return exfm.parallel.Layout(
            size,
            tables,
            dense,
            select_collectives([*traffic.collectives(), average, *collectives]),
            settings,
            tuple({"sharding": [sharding_type], "tables": {}} for sharding_type in placement.spreading),
        )

    def parallelize(
        self, model: nn.Module, table_optimizer: exfm.parallel.TableOptimizer
    ) -> exfm.parallel.ParallelModel:
        """Shards the tables inside the group, and the encoders' and the backbone's blocks as `hsdp` does."""
        if self._moment_scale:
            table_optimizer = moment_scaled(table_optimizer, self._replicas)
        shards = self._shard_tables(model, table_optimizer)
        model.to(self.device)
        self.shard_blocks(model)
        return Hsdp2dModel(model, shards, self.mesh, self._sync_every, self.process_group)

    def _shard_tables(self, model: nn.Module, table_optimizer: exfm.parallel.TableOptimizer) -> list[CollectionShards]:
        """Replaces each table collection by its shards of this process, in place."""
        options: dict[str, Any] = {"optimizer": _OPTIMIZERS[table_optimizer.name], "learning_rate": table_optimizer.lr}
        if table_optimizer.name != "sgd":
            options["eps"] = table_optimizer.eps
        sharder = EmbeddingBagCollectionSharder(fused_params=options, qcomm_codecs_registry=self._codecs)
        plan = self._placement.plan(model, sharder, table_optimizer.name)
        shards, rank = [], self.process_group.rank
        for path, module in list(model.named_modules()):
            if isinstance(module, EmbeddingBagCollection):
                # Weights that TorchRec draws are replaced, so they must not advance the generator.
                with torch.random.fork_rng(devices=[]):
                    sharded = sharder.shard(module, plan[path], self._env, self.device, path)
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, sharded)
                configs = module.embedding_bag_configs()
                shards.append(CollectionShards(path, sharded, configs, table_optimizer, rank, self.device))
                shards[-1].init_weights()
        return shards
