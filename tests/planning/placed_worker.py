"""What each process of a job really keeps and sends, for a test to compare a plan with: run by torchrun."""

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
from exfm.planning.activations import _full_batch
from exfm.planning.needs import lengths_of
from exfm.training.trainer import StepLabels, Trainer
from exfm.transfer.build import teacher_specs
from exfm_plugins.parallel.hsdp_2d.model import Hsdp2dModel
from exfm_plugins.parallel.hsdp_2d.plan import Hsdp2d

sent: Counter[str] = Counter()


def counting(output: torch.Tensor, input: torch.Tensor, *arguments: Any, **options: Any) -> Any:
    """Counts what `all_to_all_single` sends to others, by type of number."""
    splits = options.get("input_split_sizes", arguments[1] if len(arguments) > 1 else None)
    group = options.get("group")
    rank, processes = dist.get_rank(group), dist.get_world_size(group)
    parts = splits or [input.shape[0] // processes] * processes
    others = sum(parts) - parts[rank]
    sent[str(input.dtype)] += others * input[:1].numel() * input.element_size()
    return all_to_all_single(output, input, *arguments, **options)


all_to_all_single = dist.all_to_all_single


def measure(config: str, overrides: list[str]) -> dict[str, int]:
    """What this process keeps and sends in a step of one experiment."""
    experiment = exfm.load_experiment(config, overrides)
    plan = build_plan(experiment)
    trainer = Trainer(experiment.arms[0], experiment.schema, teacher_specs(experiment), plan, 0)
    rows = experiment.arms[0].config.batch_size // dist.get_world_size()
    batch = trainer.model.narrow(_full_batch(experiment.schema, rows, lengths_of(experiment.schema, {})))
    dist.all_to_all_single = counting
    trainer.step(batch, {}, StepLabels(trainer.arm.tasks, transfer=True), [rows] * dist.get_world_size())
    sent.clear()  # the first step computes twice
    trainer.step(batch, {}, StepLabels(trainer.arm.tasks, transfer=True), [rows] * dist.get_world_size())
    dist.all_to_all_single = all_to_all_single
    shards = [kept for one in getattr(trainer.parallel_model, "_shards", []) for kept in one.kept().values()]
    own = [one.to_local() if isinstance(one, DTensor) else one for one in trainer.dense]
    states = [value for state in trainer.optimizer.state.values() for name, value in state.items() if name != "step"]
    return {
        "tables": sum(kept.weight.numel() for kept in shards) * 4,
        "table_optimizer": sum(kept.state.numel() for kept in shards if kept.state is not None) * 4,
        "gradients": sum(tensor.numel() for tensor in own) * 4,
        "dense_optimizer": sum((v.to_local() if isinstance(v, DTensor) else v).numel() for v in states) * 4,
        "rows": sent["torch.float32"],
    }


def by_rows(model: nn.Module, sharder: object, optimizer: str) -> dict[str, Any]:
    """Every table cut by rows in two, as `Placement.search` has it: inside of a machine, which has both groups."""
    collections = {path: one for path, one in model.named_modules() if isinstance(one, EmbeddingBagCollection)}
    return {
        path: {
            table.name: {
                "sharding_type": "table_row_wise",
                "shards": [
                    [[part * (table.num_embeddings // 2), 0], [table.num_embeddings // 2, table.embedding_dim], part]
                    for part in range(2)
                ],
            }
            for table in collection.embedding_bag_configs()
        }
        for path, collection in collections.items()
    }


def reset_rows(config: str, overrides: list[str], rows: list[int], source_rows: list[int]) -> dict[str, torch.Tensor]:
    """Everything before and after rows of the item table are reset: it is cut by rows, and all state is one."""
    experiment = exfm.load_experiment(config, overrides)
    plan = build_plan(experiment)
    assert isinstance(plan, Hsdp2d)
    plan._placement.search = by_rows  # type: ignore[method-assign]  # gloo cannot train such tables, so no plan cuts so
    model = Trainer(experiment.arms[0], experiment.schema, teacher_specs(experiment), plan, 0).parallel_model
    assert isinstance(model, Hsdp2dModel)
    for shards in model._shards:
        for kept in shards.kept().values():
            assert kept.state is not None
            kept.state.fill_(1.0)
    before = model.state_dict() | model.table_optimizer_state_dict()
    found = {f"before/{name}": one.clone() for name, one in before.items()}
    model.reset_rows("table_item", torch.tensor(rows), torch.tensor(source_rows))
    model.sync_tables()  # averages the replicas, which all must have done the same
    after = model.state_dict() | model.table_optimizer_state_dict()
    return found | {f"after/{name}": one for name, one in after.items()}


def main(config: str, each: list[list[str]], started: list[Any], out: Path) -> None:
    dist.init_process_group("gloo")
    found = [measure(config, overrides) for overrides in each]
    states = reset_rows(config, *started)
    if dist.get_rank() == 0:
        save_file(states, out / "started.safetensors")
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
