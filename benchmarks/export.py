"""Latency of exported models: `python benchmarks/export.py`.

A student and its control are trained for a moment, exported, and asked in turn, at one row and at a hundred. Printed
are medians and ratios: of the compiled student to the compiled control, which are the same graph; of the model in eager
mode, as it is trained, to its compiled export; and the time to make tensors of the rows of a request. The
interval of a ratio is Student's t over twenty stretches of the run, each with the ratio of its own medians.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
import yaml

import exfm
from exfm.data.decode import decode
from exfm.modeling.build import build_model
from exfm.reporting.seeds import t_quantile95
from exfm.serving import load
from exfm.serving.export import Form, export
from exfm.serving.find_snapshot import find_arm, find_snapshot
from exfm.serving.served_model import ServedModel
from exfm.supervision.store import Store

SIZES = (1, 100)
SAME = 1.05
STRETCHES = 20
TRANSFER = ("auxiliary_head", "student_adapter", "representation")
Times = npt.NDArray[np.float64]
MODELS: dict[str, dict[str, Any]] = {
    "dlrm, 3 features": {"backbone": {"name": "dlrm"}, "features": ["user_id", "ad_id", "surface"]},
    "wukong, all features": {"backbone": {"name": "wukong"}},
    "wukong, din": {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "din"}},
    "wukong, transformer": {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "transformer"}},
}


def trained(folder: Path, model: Mapping[str, Any]) -> exfm.Experiment:
    """A run of two short days."""
    config = {
        "name": "latency",
        "run_dir": str(folder / "run"),
        "stream": {"source": {"name": "synthetic_ads", "days": 2, "rows_per_day": 2_000}, "window": "1d"},
        "models": {
            "fm": {"backbone": {"name": "mlp"}, "supervision": {"embedding": "float16"}},
            "vm": {**model, "transfer": [{"name": name, "teacher": "fm"} for name in TRANSFER], "control": True},
        },
        "parallel": {"name": "single", "device": "cpu"},
    }
    path = folder / "latency.yaml"
    path.write_text(yaml.safe_dump(config))
    experiment = exfm.load_experiment(str(path))
    exfm.run(experiment)
    return experiment


def calls(experiment: exfm.Experiment, folder: Path, rows: pa.RecordBatch) -> dict[str, Callable[[], object]]:
    """The actions that are timed, on some rows."""
    arm, store = find_arm(experiment, "vm"), Store(experiment.run_dir)
    weights = store.snapshots.load_whole(find_snapshot(experiment, arm, store).weights)
    plan = experiment.config.parallel.build()
    eager = build_model(arm, experiment.schema)
    plan.parallelize(eager, arm.config.optimizer.tables)
    eager.load_state_dict(weights)
    batch = eager.narrow(decode(rows, experiment.schema))
    student, control = load(str(folder / "vm")), load(str(folder / "vm.control"))
    program = load(str(folder / "vm"), compiled=False)
    tensors = student.tensors(rows)
    inside = torch.compile(ServedModel(arm, experiment.schema, weights), dynamic=True)
    requests = rows.select([name for name in rows.schema.names if name in student.description.columns]).to_pylist()
    return {
        "eager": torch.no_grad()(lambda: eager(batch)),
        "program": lambda: program.run(tensors),
        "torch.compile": torch.no_grad()(lambda: inside(*tensors)),
        "compiled": lambda: student.run(tensors),
        "control": lambda: control.run(tensors),
        "tensors": lambda: student.tensors(requests),
    }


def times_us(actions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, Times]:
    """The times of each action, all of them in turn, in another order each time: who comes second finds inputs warm."""
    for _ in range(20):
        for action in actions.values():
            action()
    times: dict[str, list[float]] = {name: [] for name in actions}
    orders, names = random.Random(0), list(actions)
    for _ in range(repeats):
        orders.shuffle(names)
        for name in names:
            action = actions[name]
            start = time.perf_counter()
            action()
            times[name].append((time.perf_counter() - start) * 1e6)
    return {name: np.array(values) for name, values in times.items()}


@dataclass(frozen=True)
class Ratio:
    """How many times as long an action takes as another: of the medians, and half of its 95% interval."""

    value: float
    half: float

    @classmethod
    def of(cls, one: Times, other: Times) -> Ratio:
        """From times that were taken in turn."""
        pairs = zip(np.array_split(one, STRETCHES), np.array_split(other, STRETCHES), strict=True)
        stretches = [float(np.median(a) / np.median(b)) for a, b in pairs]
        half = t_quantile95(STRETCHES - 1) * float(np.std(stretches, ddof=1)) / STRETCHES**0.5
        return cls(float(np.median(one) / np.median(other)), half)

    def __str__(self) -> str:
        return f"{self.value:.2f} ± {self.half:.2f}"


def measure(name: str, model: Mapping[str, Any], repeats: int) -> list[tuple[Ratio, Ratio]]:
    """Prints a line for each size; returns the ratios of student to control, and of eager mode to compiled."""
    ratios = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        experiment = trained(folder, model)
        for exported in ("vm", "vm.control"):
            export(experiment, exported, str(folder / exported), Form(compiled=True))
        span = experiment.source.time_range()
        rows = next(iter(experiment.source.read(exfm.sources.Window(0, span.start_us, span.end_us))))
        for size in SIZES:
            us = times_us(calls(experiment, folder, rows.slice(0, size)), repeats)
            same, faster = Ratio.of(us["compiled"], us["control"]), Ratio.of(us["eager"], us["compiled"])
            figures = "".join(f"{np.median(value):>14,.0f}" for value in us.values())
            print(f"{name:<22}{size:>5}{figures}{same!s:>17}{faster!s:>16}", flush=True)
            ratios.append((same, faster))
    return ratios


def main(arguments: Sequence[str] | None = None) -> None:
    """Exit status 1 when a student is slower than its control, or a compiled model than the same in eager mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=1_000)
    parser.add_argument("--threads", type=int, default=1, help="a server's requests share the cores as a rule")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    columns = ("eager", "program", "torch.compile", "compiled", "control", "rows->tensors")
    print(f"microseconds, torch {torch.__version__}, {torch.get_num_threads()} threads")
    header = "".join(f"{column:>14}" for column in columns)
    print(f"{'model':<22}{'rows':>5}{header}{'student/control':>17}{'eager/compiled':>16}")
    ratios = [pair for name in given.models for pair in measure(name, MODELS[name], given.repeats)]
    same, faster = max(pair[0].value for pair in ratios), min(pair[1].value for pair in ratios)
    print(f"highest student/control {same:.2f} (at most {SAME}), lowest eager/compiled {faster:.1f} (above 1)")
    sys.exit(same > SAME or faster <= 1)


if __name__ == "__main__":
    main()
