"""Time and traffic of a training step on 1, 2 and 4 local processes: `python benchmarks/parallel_steps.py`.

Trains the quickstart's foundation model, with another batch size, on the first rows of its stream. Bytes are those that
the operating system has sent through a process's TCP connections, gloo's and torchrun's, so Linux is needed; those of
all processes are added up. The processes share out the same batch, so a step is the same step on any number of them.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from exfm.interfaces.process_group import ProcessGroup

EXPERIMENT = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
PLANS = (
    "{name: single}",
    "{name: ddp}",
    "{name: hsdp}",
    "{name: hsdp_2d}",
    "{name: hsdp_2d, communication: fp16, gradients: bf16}",
    "{name: hsdp_2d, replicas: 2}",
)
WARM_UP = 5
_BYTES_SENT = 200  # where tcp_info has tcpi_bytes_sent


def sent() -> int:
    """Bytes that this process's TCP connections have sent since they exist."""
    total = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not str(entry.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as one:
                if one.type == socket.SOCK_STREAM and one.family in (socket.AF_INET, socket.AF_INET6):
                    info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_SENT + 8)
                    total += struct.unpack_from("Q", info, _BYTES_SENT)[0]
        except OSError:  # closed since it was listed
            continue
    return total


def run_measurement(script: str, processes: int, arguments: Sequence[str]) -> Any:
    """Runs a script on local processes; returns the figures that it prints last, as ``end_measurement`` does."""
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [*launch, script, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def end_measurement(process_group: ProcessGroup, figures: Mapping[str, Any]) -> NoReturn:
    """Prints the first process's figures as JSON, and ends the process."""
    if process_group.is_rank_zero:
        print(json.dumps(figures), flush=True)
    process_group.barrier()
    sys.stdout.flush()
    os._exit(0)  # as `exfm run` does


def measure(plan_text: str, batch_size: int, steps: int) -> NoReturn:
    """Trains some steps in a process; the first process prints its measurements, as JSON."""
    import torch

    import exfm
    from exfm.data.stream import ChunkReader
    from exfm.data.windows import stream_windows
    from exfm.distributed.chunk_exchange import read_sharded
    from exfm.experiment.run import build_plan
    from exfm.learning.trainer import Trainer
    from exfm.transfer.build import teacher_specs

    overrides = [f"parallel={plan_text}", f"models.fm.batch_size={batch_size}", "stream.source.days=2"]
    # The FM alone is measured; states are refused with several processes.
    overrides += ["models.fm.supervision={}", "models.vm.transfer=[{name: direct, teacher: fm}]"]
    experiment = exfm.load_experiment(str(EXPERIMENT), overrides)
    arm, schema = experiment.arms[0], experiment.schema
    plan = build_plan(experiment)
    trainer = Trainer(arm, schema, teacher_specs(experiment), plan, experiment.config.seed)
    reader = ChunkReader(experiment.source, schema, experiment.config.stream, {arm.name: {}}, plan.shard)
    window = next(stream_windows(experiment.source, experiment.config.stream.window))
    chunk = next(read_sharded(reader, window, plan.process_group))
    batches = list(chunk.batches(chunk.cut(None, batch_size), trainer.model))
    learn = arm.tasks
    for number in range(WARM_UP + steps):
        if number == WARM_UP:
            plan.process_group.barrier()
            before, start = sent(), time.perf_counter()
        model_batch = batches[number % len(batches)]
        trainer.step(model_batch.batch, (), learn, model_batch.shard.counts)
    seconds = (time.perf_counter() - start) / steps
    moved = int(plan.process_group.all_gather(torch.tensor(sent() - before)).sum()) / steps
    counts = trainer.model.parameter_counts()
    figures = {"ms": 1e3 * seconds, "bytes": moved, "rows": batches[0].shard.counts, **counts}
    end_measurement(plan.process_group, figures)


def main() -> None:
    """Prints a line for each plan and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--measure", metavar="PLAN", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.batch_size, asked.steps)
    print("| plan | processes | ms per step | examples/s | MB moved per step |\n|---|---|---|---|---|", flush=True)
    for plan in PLANS:
        for processes in (1, 2, 4):
            if (processes == 1) != (plan == PLANS[0]):
                continue
            fields = ["--measure", plan, "--batch-size", str(asked.batch_size), "--steps", str(asked.steps)]
            figures = run_measurement(__file__, processes, fields)
            rate = sum(figures["rows"]) / figures["ms"] * 1e3
            cells = (f"`{plan}`", processes, f"{figures['ms']:.1f}", f"{rate:,.0f}", f"{figures['bytes'] / 1e6:.2f}")
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
