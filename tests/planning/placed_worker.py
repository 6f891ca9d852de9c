"""What each process of a job really keeps and sends, for a test to compare a plan with: run by torchrun."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import exfm
from exfm.planning.activations import _full_batch
from exfm.planning.needs import lengths_of
from exfm.training.building import teacher_shapes
from exfm.training.run import build_plan
from exfm.training.trainer import StepLabels, Trainer

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
    trainer = Trainer(experiment.arms[0], experiment.schema, teacher_shapes(experiment), plan, 0)
    rows = experiment.arms[0].config.batch_size // dist.get_world_size()
    batch = trainer.model.narrow(_full_batch(experiment.schema, rows, lengths_of(experiment.schema, {})))
    dist.all_to_all_single = counting
    trainer.step(batch, {}, StepLabels(trainer.arm.tasks, transfer=True), [rows] * dist.get_world_size())
    sent.clear()  # the first step computes twice
    trainer.step(batch, {}, StepLabels(trainer.arm.tasks, transfer=True), [rows] * dist.get_world_size())
    dist.all_to_all_single = all_to_all_single
    shards = [kept for one in getattr(plan, "_shards", {}).get(trainer.model, []) for kept in one.kept().values()]
    own = [one.to_local() if isinstance(one, DTensor) else one for one in trainer.dense]
    states = [value for state in trainer.optimizer.state.values() for name, value in state.items() if name != "step"]
    return {
        "tables": sum(kept.weight.numel() for kept in shards) * 4,
        "table_optimizer": sum(kept.state.numel() for kept in shards if kept.state is not None) * 4,
        "gradients": sum(tensor.numel() for tensor in own) * 4,
        "dense_optimizer": sum((v.to_local() if isinstance(v, DTensor) else v).numel() for v in states) * 4,
        "rows": sent["torch.float32"],
    }


def main(config: str, each: list[list[str]], out: Path) -> None:
    dist.init_process_group("gloo")
    found = [measure(config, overrides) for overrides in each]
    (out / f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # as `exfm run` does


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3]))
