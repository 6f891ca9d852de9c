"""FLOPs and traffic of a student's step per process, on 1, 2 and 4: `python benchmarks/parallel_loss.py`.

Trains a student of the quickstart's stream, which learns by an auxiliary head, a student adapter and its
representation, on the supervision of a teacher that draws its predictions at random. A step is the same step on any
number of processes. FLOPs are those of torch's counter, forward and backward, of the process that has most. Bytes are
those that a process's TCP connections have sent, as of `parallel_steps.py`. Neither depends on how busy the machine is.
"""

from __future__ import annotations

import argparse
from typing import NoReturn

from parallel_steps import EXPERIMENT, end_measurement, run_measurement, sent

PLANS = ("ddp", "hsdp", "hsdp_2d")
STUDENT = (
    "{backbone: {name: dlrm}, features: [user_id, ad_id, surface], control: false, transfer: "
    "[{name: auxiliary_head, teacher: fm}, {name: student_adapter, teacher: fm}, "
    "{name: representation, teacher: fm, loss: LOSS}]}"
)
WARM_UP = 3  # heads for soft labels start from a whole batch


def measure(plan_text: str, batch_size: int, steps: int, loss: str) -> NoReturn:
    """Trains some steps in a process; the first process prints the counts per step, as JSON."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    import exfm
    from exfm.data.stream import ChunkReader
    from exfm.data.windows import stream_windows
    from exfm.distributed.chunk_exchange import read_sharded
    from exfm.experiment.run import build_plan
    from exfm.learning.trainer import Trainer
    from exfm.transfer import TeacherOutput
    from exfm.transfer.build import teacher_specs

    overrides = [f"parallel={plan_text}", f"stream.chunk_rows={batch_size}", "stream.source.days=1"]
    overrides += ["models.fm.supervision={embedding: float16}", f"models.vm={STUDENT.replace('LOSS', loss)}"]
    overrides += [f"models.vm.batch_size={batch_size}"]
    experiment = exfm.load_experiment(str(EXPERIMENT), overrides)
    arm = next(arm for arm in experiment.arms if arm.name == "vm")
    plan, specs = build_plan(experiment), teacher_specs(experiment)
    trainer = Trainer(arm, experiment.schema, specs, plan, experiment.config.seed)
    reader = ChunkReader(experiment.source, experiment.schema, experiment.config.stream, {"vm": {}}, plan.shard)
    window = next(stream_windows(experiment.source, experiment.config.stream.window))
    chunk = next(read_sharded(reader, window, plan.process_group))
    (model_batch,) = chunk.batches(chunk.cut(None, batch_size), trainer.model)
    torch.manual_seed(plan.process_group.rank)
    size, width = model_batch.shard.size, specs["fm"].embedding_dim or 0
    soft = {task: torch.rand(size) for task in arm.tasks}
    hit = {task: torch.rand(size) < 0.9 for task in arm.tasks}
    outputs = {"fm": TeacherOutput(soft, hit, torch.randn(size, width), torch.rand(size))}
    taught = trainer.transfer.join(outputs)

    def step() -> None:
        learn = arm.tasks
        trainer.step(model_batch.batch, taught, learn, model_batch.shard.counts)

    for _ in range(WARM_UP):
        step()
    plan.process_group.barrier()
    before = sent()
    for _ in range(steps):
        step()
    moved = (sent() - before) // steps
    with FlopCounterMode(display=False) as counter:
        step()
    counts = plan.process_group.all_gather(torch.tensor([counter.get_total_flops(), moved]))
    flops, most = counts.amax(dim=0).tolist()
    end_measurement(plan.process_group, {"flops": flops, "bytes": most, "rows": max(model_batch.shard.counts)})


def main() -> None:
    """Prints a line for each plan and number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--loss", default="cosine", help="the representation's: contrastive needs whole batches")
    parser.add_argument("--measure", metavar="PLAN", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        measure(asked.measure, asked.batch_size, asked.steps, asked.loss)
    print("| plan | processes | rows per process | MFLOP per process | of one's | kB sent per process |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    alone = 0
    for plan, processes in [("single", 1), *((plan, count) for plan in PLANS for count in (2, 4))]:
        fields = ["--measure", f"{{name: {plan}}}", "--batch-size", str(asked.batch_size), "--steps", str(asked.steps)]
        counts = run_measurement(__file__, processes, [*fields, "--loss", asked.loss])
        alone = alone or counts["flops"]
        share = f"{counts['flops'] / alone:.3f}"
        cells = [f"`{plan}`", processes, counts["rows"], f"{counts['flops'] / 1e6:.1f}", share]
        cells.append(f"{counts['bytes'] / 1e3:,.1f}")
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
