"""Measures the bytes that each process of a job holds and sends, for comparison with a plan; run by torchrun."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torchrec import EmbeddingBagCollection

import exfm
from exfm.experiment.run import build_plan
from exfm.learning.trainer import Trainer
from exfm.planning.activations import _full_batch
from exfm.planning.needs import list_lengths
from exfm.testing.plan_exercise import SavedStates
from exfm.transfer.build import teacher_specs
from exfm_plugins.parallel.hsdp_2d.model import Hsdp2dModel
from exfm_plugins.parallel.hsdp_2d.plan import Hsdp2d

sent: Counter[str] = Counter()


def counting(output: torch.Tensor, input: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    """Counts the bytes that `all_to_all_single` sends to other processes, by dtype."""
    splits = options.get("input_split_sizes", arguments[1] if len(arguments) > 1 else None)
    group = options.get("group")
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    split_sizes = splits or [input.shape[0] // processes] * processes
    others = sum(split_sizes) - split_sizes[rank]
    sent[str(input.dtype)] += others * input[:1].numel() * input.element_size()
    return all_to_all_single(output, input, *arguments, **options)


all_to_all_single = dist.all_to_all_single


def measure(config: str, overrides: list[str]) -> dict[str, int]:
    """Measures the bytes that this process holds, and sends in a step."""
    experiment = exfm.load_experiment(config, overrides)
    plan = build_plan(experiment)
    trainer = Trainer(experiment.arms[0], experiment.schema, teacher_specs(experiment), plan, 0)
    rows = experiment.arms[0].config.batch_size // dist.get_world_size()
    batch = trainer.model.narrow(_full_batch(experiment.schema, rows, list_lengths(experiment.schema, {})))
    dist.all_to_all_single = counting
    trainer.step(batch, (), trainer.arm.tasks, [rows] * dist.get_world_size())
    sent.clear()  # the first step also initializes, and computes twice
    trainer.step(batch, (), trainer.arm.tasks, [rows] * dist.get_world_size())
    dist.all_to_all_single = all_to_all_single
    shards = []
    for collection in getattr(trainer.parallel_model, "_shards", []):
        shards += collection.local_tensors().values()
    states = []
    for state in trainer.dense.optimizer.state.values():
        states += [value for name, value in state.items() if name != "step"]
    return {
        "tables": sum(shard.weight.numel() for shard in shards) * 4,
        "table_optimizer": sum(shard.state.numel() for shard in shards if shard.state is not None) * 4,
        "gradients": sum(map(local_size, trainer.dense.parameters)) * 4,
        "dense_optimizer": sum(map(local_size, states)) * 4,
        "rows": sent["torch.float32"],
    }


def local_size(tensor: torch.Tensor) -> int:
    return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()


def by_rows(model: nn.Module, sharder: object, optimizer: str) -> dict[str, Any]:
    """Splits every table by rows into halves, in the form of `Placement.search`.

    The shards are in a machine, which has both groups.
    """
    placement: dict[str, Any] = {}
    for path, collection in model.named_modules():
        if isinstance(collection, EmbeddingBagCollection):
            placement[path] = {}
            for table in collection.embedding_bag_configs():
                half = [table.num_embeddings // 2, table.embedding_dim]
                shards = [[[process * half[0], 0], half, process] for process in range(2)]
                placement[path][table.name] = {"sharding_type": "table_row_wise", "shards": shards}
    return placement


def reset_rows(config: str, overrides: list[str], rows: list[int], source_rows: list[int]) -> dict[str, torch.Tensor]:
    """Returns all tensors before and after rows of the item table, which is split by rows, are reset."""
    experiment = exfm.load_experiment(config, overrides)
    plan = build_plan(experiment)
    assert isinstance(plan, Hsdp2d)
    plan._placement.search = by_rows  # type: ignore[method-assign]  # gloo cannot train such tables, so no plan cuts so
    model = Trainer(experiment.arms[0], experiment.schema, teacher_specs(experiment), plan, 0).parallel_model
    assert isinstance(model, Hsdp2dModel)
    for shards in model._shards:
        for shard in shards.local_tensors().values():
            assert shard.state is not None
            shard.state.fill_(1.0)
    saved = SavedStates(plan)
    before = saved.read(saved.save(model.state_dict() | model.table_optimizer_state_dict()))
    tensors = {f"before/{name}": tensor for name, tensor in before.items()}
    model.reset_rows("table_item", torch.tensor(rows), torch.tensor(source_rows))
    model.sync_tables()  # averages the replicas, which must all be equal
    after = saved.read(saved.save(model.state_dict() | model.table_optimizer_state_dict()))
    saved.remove()
    return tensors | {f"after/{name}": tensor for name, tensor in after.items()}


def main(config: str, each: list[list[str]], reset: list[Any], out: Path) -> None:
    dist.init_process_group("gloo")
    measured = [measure(config, overrides) for overrides in each]
    states = reset_rows(config, *reset)
    if dist.get_rank() == 0:
        save_file(states, out / "reset.safetensors")
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(measured))
    dist.barrier()
