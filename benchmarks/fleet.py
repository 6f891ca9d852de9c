"""Compares tiny students in groups, each a job, with a job for each student: processor time, and bytes read.

The students are of three traffics, an FM teaches all of them, and a labeller has labelled its stream before. The jobs
are those of `exfm up`, packed once with `launcher.group_size` and once with a size of 1, and run in turn.
Processor seconds and bytes (/proc/self/io, `rchar`: all that is read, files of libraries too) are those of the jobs of
students alone.

    python benchmarks/fleet.py --students 60 --rows 30000
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from exfm.launch import Job, command_here
from exfm.launch.graph import Commands
from exfm.launch.groups import savings
from exfm.launch.prepare import load_with_launcher, prepare_fleet

DAYS, TRAFFICS, IDS = 4, 3, 8
DAY_US = 86_400_000_000


def write_log(folder: Path, rows: int) -> int:
    """Writes a file for each day; returns the bytes of all."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for day in range(DAYS):
        count = rows // DAYS
        time_us = 1_700_006_400_000_000 + day * DAY_US + np.sort(random.integers(0, DAY_US, count))
        columns: dict[str, Any] = {
            "example_id": day * count + np.arange(count),
            "event_time": pa.array(time_us, pa.timestamp("us", "UTC")),
            "surface": random.integers(0, TRAFFICS, count),
            "click": (random.random(count) < 0.2).astype(np.int8),
        }
        columns |= {f"id_{number}": random.integers(0, 1_000, count) for number in range(IDS)}
        pq.write_table(pa.table(columns), folder / f"{day}.parquet", row_group_size=8_192)
    return sum(path.stat().st_size for path in folder.iterdir())


def experiment(folder: Path, students: int) -> dict[str, Any]:
    """Describes an FM that labels a day later, and its students."""
    names = ["surface", *(f"id_{number}" for number in range(IDS))]
    features = [{"name": name, "kind": "categorical", "rows": 1_024} for name in names]
    source = {"name": "parquet", "path": str(folder / "log"), "labels": [{"name": "click"}], "features": features}
    models: dict[str, Any] = {"fm": {"backbone": {"name": "mlp"}, "supervision": {"delay": "1d"}}}
    for number in range(students):
        models[f"vm{number:03d}"] = {
            "backbone": {"name": "mlp", "hidden": [8]},
            "features": names[1:6],
            "where": {"surface": number % TRAFFICS},
            "embedding_dim": 4,
            "transfer": [{"name": "auxiliary_head", "teacher": "fm"}],
        }
    return {
        "name": "fleet",
        "run_dir": str(folder / "labelled"),
        "stream": {"source": source, "window": "1d"},
        "models": models,
    }


def run(jobs: Sequence[Job], log: Path) -> dict[str, float]:
    """Runs jobs in turn; returns their processor seconds and the bytes that they have read."""
    before, read = resource.getrusage(resource.RUSAGE_CHILDREN), bytes_read()
    with log.open("ab") as output:
        for job in jobs:
            subprocess.run(command_here(job), check=True, stdout=output, stderr=output)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"jobs": len(jobs), "cpu_s": round(cpu_s, 1), "bytes_read": bytes_read() - read}


def bytes_read() -> int:
    """Returns the bytes that this process has read, and those of its children that have ended."""
    (line,) = (line for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("rchar:"))
    return int(line.split()[1])


def main() -> None:
    """Prints a line of JSON for groups, for single jobs, and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--students", type=int, default=60)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--group-size", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log_bytes = write_log(folder / "log", arguments.rows)
        file = folder / "fleet.yaml"
        file.write_text(yaml.safe_dump(experiment(folder, arguments.students)))
        figures: dict[str, dict[str, float]] = {}
        for kind, size in (("groups", arguments.group_size), ("single", 1)):
            run_dir = folder / kind
            overrides = (f"run_dir={run_dir}", "launcher.name=local", f"launcher.group_size={size}")
            commands = Commands(str(file), overrides, (), "done")
            loaded, launcher = load_with_launcher(commands, None)
            fleet, groups = prepare_fleet(loaded, launcher, commands, keep=False)
            teachers = [job for job in fleet.jobs if "fm" in job.models]
            if kind == "groups":
                print(savings(loaded, groups), flush=True)
                run(teachers, folder / "teachers.log")
                shutil.copytree(run_dir, folder / "single")
            students = [job for job in fleet.jobs if job.models and "fm" not in job.models]
            figures[kind] = run(students, folder / f"{kind}.log")
            print(json.dumps({"kind": kind, "log_bytes": log_bytes, **figures[kind]}), flush=True)
    ratios = {key: round(figures["groups"][key] / figures["single"][key], 3) for key in ("cpu_s", "bytes_read")}
    print(json.dumps({"kind": "groups / single", **ratios}))


if __name__ == "__main__":
    main()
