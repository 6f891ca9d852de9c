"""Two-dimensional parallelism: tables sharded inside groups of processes, and averaged over the groups."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.types import ShardingEnv2D

import exfm
from exfm_plugins.ddp.layout import told
from exfm_plugins.hsdp.layout import group_size
from exfm_plugins.hsdp.plan import Hsdp
from exfm_plugins.hsdp_2d.layout import TableTraffic, places_of
from exfm_plugins.hsdp_2d.placement import Placement, ShardingType, TableConstraint
from exfm_plugins.hsdp_2d.shards import Shards

_OPTIMIZERS = {
    "adagrad": EmbOptimType.EXACT_ADAGRAD,
    "rowwise_adagrad": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
    "sgd": EmbOptimType.EXACT_SGD,
}


def moment_scaled(tables: exfm.TableOptimizer, replicas: int) -> exfm.TableOptimizer:
    """AdaGrad that divides by ``sqrt(v / replicas) + eps``, for kernels that divide by ``sqrt(v) + eps``.

    See arXiv 2508.03854. SGD has no moments and stays as it is.
    """
    if tables.name == "sgd":
        return tables
    scale = math.sqrt(replicas)
    return tables.model_copy(update={"lr": tables.lr * scale, "eps": tables.eps * scale})


def check_communication(communication: str, device: torch.device) -> None:
    """Checks that rows can travel so.

    Raises:
        ValueError: they cannot on this device.
    """
    if communication == "fp8" and device.type == "cpu":
        raise ValueError("communication: fp8 needs GPUs; allowed on a CPU: fp32, fp16, bf16")


class Hsdp2d(Hsdp):
    """2-D sparse parallelism (arXiv 2508.03854): `hsdp` for dense layers, and tables that are sharded inside a group.

    The processes form ``replicas`` groups. Inside a group TorchRec's planner gives each process its shards of the
    tables; ids and looked-up rows travel inside the group only. The optimizer of tables runs in the backward pass of a
    group's own rows, so the groups' tables part, and their weights and optimizer states are averaged every
    ``sync_every`` steps and before every snapshot. With one group losses and predictions are those of `single`; with
    several they are where tables have SGD and are averaged at every step.

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
            "fp32", description="The numbers in which looked-up rows and their gradients travel; fp8 needs GPUs."
        )
        sharding: tuple[ShardingType, ...] = Field(
            (), description="How tables may be cut that `tables` says nothing of; without any, as the device can."
        )
        tables: dict[str, TableConstraint] = Field(
            default_factory=dict, description="What the planner may do with a table, by the table's name."
        )

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._sync_every, self._moment_scale = config.sync_every, config.moment_scale
        self._replicas = self.mesh["replicate"].size()
        size = self.mesh["shard"].size()
        first = self.ranks.index // size * size
        otherwise = TableConstraint(sharding=config.sharding)
        self._placement = Placement(self.ranks, size, first, self.device, config.tables, otherwise)
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
        self._shards: WeakKeyDictionary[nn.Module, list[Shards]] = WeakKeyDictionary()
        self._steps: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()

    @classmethod
    def layout(
        cls, config: Any, model: nn.Module, tables: exfm.TableOptimizer, step: exfm.TrainingStep, cluster: exfm.Cluster
    ) -> exfm.Layout:
        """Tables as TorchRec's planner places them in a group, blocks sharded in it. On GPUs, unless told otherwise."""
        size, settings = group_size(cls.name, config.replicas, cluster)
        device = torch.device("cpu" if config.device == "cpu" else "cuda")
        check_communication(config.communication, device)
        otherwise = TableConstraint(sharding=config.sharding)
        placement = Placement(exfm.Ranks(), size, 0, device, config.tables, otherwise, cluster)
        places = places_of(placement.found(model, EmbeddingBagCollectionSharder(), tables.name))
        traffic = TableTraffic(step, places, size, min(size, cluster.per_machine), config.communication)
        dense, exchanges = cls._dense_layout(config, model, step, cluster.count, size)
        average = traffic.average(tables.name, cluster.count // size, config.sync_every)
        return exfm.Layout(
            size,
            places,
            dense,
            told([*traffic.exchanges(), average, *exchanges]),
            settings,
            tuple({"sharding": [way], "tables": {}} for way in placement.spreading),
        )

    def apply(self, model: nn.Module, tables: exfm.TableOptimizer) -> nn.Module:
        """Shards the tables inside the group, and the encoders' and the backbone's blocks as `hsdp` does."""
        if self._moment_scale:
            tables = moment_scaled(tables, self._replicas)
        options: dict[str, Any] = {"optimizer": _OPTIMIZERS[tables.name], "learning_rate": tables.lr}
        if tables.name != "sgd":
            options["eps"] = tables.eps
        sharder = EmbeddingBagCollectionSharder(fused_params=options, qcomm_codecs_registry=self._codecs)
        plan = self._placement.plan(model, sharder, tables.name)
        shards, rank, in_first_group = [], self.ranks.index, self._placement.first == 0
        for path, module in list(model.named_modules()):
            if isinstance(module, EmbeddingBagCollection):
                with torch.random.fork_rng(devices=[]):  # its own first values are replaced
                    sharded = sharder.shard(module, plan[path], self._env, self.device, path)
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, sharded)
                configs = module.embedding_bag_configs()
                shards.append(Shards(path, sharded, configs, tables, rank, in_first_group))
                shards[-1].start()
        model = super().apply(model, tables)
        self._shards[model] = shards
        self._steps[model] = 0
        return model

    def after_step(self, model: nn.Module) -> None:
        """Averages tables over the replicas every ``sync_every`` steps."""
        self._steps[model] += 1
        if self._steps[model] == self._sync_every:
            self._synchronise(model)

    @torch.no_grad()
    def _synchronise(self, model: nn.Module) -> None:
        """Averages what the replicas of each shard keep, unless nothing has changed since the last time."""
        if self._replicas > 1 and self._steps[model]:
            group = self.mesh.get_group("replicate")
            kept = [kept for shards in self._shards[model] for kept in shards.kept().values()]
            tensors = [tensor for one in kept for tensor in (one.weight, one.state) if tensor is not None]
            for sum_ in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]:
                assert sum_ is not None
                sum_.wait()
            for tensor in tensors:
                tensor /= self._replicas  # gloo has no mean
        self._steps[model] = 0

    def start_rows(self, model: nn.Module, table: str, rows: Tensor, like: Tensor) -> None:
        """Starts them in every group's tables; replicas that have parted stay apart until they are averaged."""
        for shards in self._shards[model]:
            shards.start_rows(table, rows, like, self.mesh.get_group("shard"))

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """The state dict, whole; tables on the first process only. The replicas are averaged before."""
        self._synchronise(model)
        tables = self._table_names(model)
        dense = {name: self.whole(value) for name, value in model.state_dict().items() if name not in tables}
        return dense | {k: v for shards in self._shards[model] for k, v in shards.whole_weights().items()}

    @torch.no_grad()
    def load_weights(self, model: nn.Module, weights: Mapping[str, Tensor], strict: bool = True) -> None:
        """Puts back what ``weights`` gave, each process its shards."""
        current, tables = model.state_dict(), self._table_names(model)
        wrong = sorted((current.keys() | tables) ^ weights.keys())
        if strict and wrong:
            raise RuntimeError(f"state dict: {wrong[0]} is in the model or in the weights, not in both")
        for shards in self._shards[model]:
            shards.load_weights(weights)
        for name in weights.keys() - tables:
            current[name].copy_(self.place(weights[name], current[name]))

    def _table_names(self, model: nn.Module) -> set[str]:
        return {name for shards in self._shards[model] for name in shards.weight_names.values()}

    def table_state(self, model: nn.Module) -> dict[str, Tensor]:
        """The fused optimizers' accumulators, whole, by the names that `single` gives them."""
        self._synchronise(model)
        return {k: v for shards in self._shards[model] for k, v in shards.whole_states().items()}

    def table_memory(self, model: nn.Module) -> dict[str, Tensor]:
        """Nothing: a process has its shards."""
        return {}

    def load_table_state(self, model: nn.Module, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``table_state`` gave, each process its shards."""
        for shards in self._shards[model]:
            shards.load_states(state)
