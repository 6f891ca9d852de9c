"""Tables that no process may hold: `python benchmarks/soak_memory.py [--gigabytes 1]`.

Four processes train, save, are killed by SIGKILL and resume, each with a limit of its address space: that of the same
job with tiny tables, and 3/8 of the bytes of all tables and their optimizer. The same snapshot then loads on two
processes and alone, without a limit, and is exported. All runs must predict the same.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

TABLES, WIDTH, DAYS, DAY_ROWS = 4, 64, 3, 4_000
START_US, DAY_US = 1_767_225_600_000_000, 86_400_000_000  # 2026, in UTC
SCRIPT = b"soak_memory"
SHARE = 3 / 8  # of all tables and states, for a process of four: 1.5 of 4 GB


def write_log(folder: Path) -> None:
    """A file for each day; ids are drawn from more than any table has rows."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for day in range(DAYS):
        columns: dict[str, Any] = {
            f"id_{number}": random.integers(0, 1 << 40, DAY_ROWS) % (1 << 14) * 7919 for number in range(TABLES)
        }
        columns["example_id"] = np.arange(DAY_ROWS) + day * DAY_ROWS
        times = START_US + day * DAY_US + np.sort(random.integers(0, DAY_US, DAY_ROWS))
        columns["event_time"] = pa.array(times, pa.timestamp("us", "UTC"))
        columns["click"] = (random.random(DAY_ROWS) < 0.3).astype(np.int8)
        pq.write_table(pa.table(columns), folder / f"{day}.parquet")


def write_config(folder: Path, name: str, rows: int) -> Path:
    """The experiment, on tables of so many rows; the days after the first are added later."""
    features = [{"name": f"id_{number}", "kind": "categorical", "rows": rows} for number in range(TABLES)]
    source = {"name": "parquet", "path": str(folder / f"log-{name}"), "labels": [{"name": "click"}]}
    model = {"backbone": {"name": "mlp"}, "embedding_dim": WIDTH, "batch_size": 500}
    config = {
        "name": "memory",
        "run_dir": str(folder / name),
        "stream": {"source": source | {"features": features}, "window": "1d", "chunk_rows": 1000},
        "evaluation": {"skip": 0.25, "replicates": 100},
        "models": {"fm": model | {"optimizer": {"tables": {"name": "adagrad"}}}},
        "parallel": {"name": "hsdp_2d"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def add_day(folder: Path, name: str, day: int) -> None:
    (folder / f"log-{name}").mkdir(exist_ok=True)
    shutil.copy(folder / "log" / f"{day}.parquet", folder / f"log-{name}")


def work(limit: int, arguments: list[str]) -> None:
    """Runs exfm in this process under a limit of its address space."""
    from exfm.cli.main import main

    if limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    sys.argv = ["exfm", *arguments]
    main()


def workers(job: subprocess.Popen[bytes]) -> list[int]:
    """The processes of a job that run exfm: those that torchrun has started, or the job itself."""
    with suppress(FileNotFoundError):
        children = map(int, Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split())
        return [child for child in children if SCRIPT in Path(f"/proc/{child}/cmdline").read_bytes()] or [job.pid]
    return []


def peaks(process: int) -> tuple[int, int]:
    """The peaks of a process so far: address space, and resident memory. Zeros of a process that has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{process}/status").read_text()
        sizes = dict(re.findall(r"(VmPeak|VmHWM):\s+(\d+)", status))
        if sizes:
            return int(sizes["VmPeak"]) << 10, int(sizes["VmHWM"]) << 10
    return 0, 0


def start(processes: int, limit: int, errors: Path, *arguments: str) -> subprocess.Popen[bytes]:
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--max-restarts=2"]
    command = [*launch, __file__, "--limit", str(limit), "--", *arguments]
    # A thread's arena of malloc reserves 128 MiB of address space.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors.open("ab"))


def finish(job: subprocess.Popen[bytes], title: str, began: float, errors: Path) -> tuple[int, int]:
    """Waits for a job; returns the largest peaks of its processes."""
    largest = (0, 0)
    while job.poll() is None:
        for process in workers(job):
            space, resident = peaks(process)
            largest = max(largest[0], space), max(largest[1], resident)
        time.sleep(0.1)
    if job.returncode:
        sys.exit(f"{title}: status {job.returncode}\n{errors.read_text()[-6000:]}")
    space, resident = (size >> 20 for size in largest)
    seconds = time.monotonic() - began
    print(
        f"{title}: {seconds:.0f} s, peak of a process {space:,} MiB of address space, {resident:,} MiB resident",
        flush=True,
    )
    return largest


def run(title: str, processes: int, limit: int, *arguments: str) -> tuple[int, int]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        errors = Path(folder) / "errors"
        return finish(start(processes, limit, errors, *arguments), title, began, errors)


def killed(title: str, limit: int, run_dir: Path, *arguments: str) -> None:
    """A job of four processes, of which a process is killed once it has begun to write the next snapshot."""
    began, errors = time.monotonic(), run_dir.parent / "errors"
    job = start(4, limit, errors, *arguments)
    folder = run_dir / "snapshots" / "fm" / "000001"
    while job.poll() is None and not folder.exists():
        time.sleep(0.02)
    os.kill(workers(job)[2], signal.SIGKILL)
    finish(job, title, began, errors)


def predictions(run_dir: Path) -> np.ndarray[Any, Any]:
    """All predictions by example id, because each of several processes writes its own rows."""
    files = sorted((run_dir / "predictions" / "fm").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file, columns=["example_id", "prediction_click"]) for file in files])
    return np.asarray(rows.sort_by("example_id")["prediction_click"].to_numpy())


def main() -> None:
    """Exit status 1 when a run fails or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=1.0, help="Of all tables and their optimizer's state.")
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    asked, arguments = parser.parse_known_args()
    if asked.limit is not None:
        work(asked.limit, arguments[1:])
        return
    total = int(asked.gigabytes * 1e9)
    rows = total // (TABLES * WIDTH * 4 * 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log")
        paths = {size: write_config(folder, size, count) for size, count in (("tiny", 1000), ("large", rows))}
        for size in paths:
            add_day(folder, size, 0)
        base, _ = run("tiny tables", 4, 0, "run", str(paths["tiny"]))
        limit = base + int(total * SHARE)
        print(f"limit of a process: {limit >> 20:,} MiB, of which {int(total * SHARE) >> 20:,} for tables", flush=True)
        run("four processes, first day", 4, limit, "run", str(paths["large"]))
        add_day(folder, "large", 1)
        killed("four processes, second day, one killed", limit, folder / "large", "run", str(paths["large"]))
        add_day(folder, "large", 2)
        predicted: dict[int, np.ndarray[Any, Any]] = {}
        saved = shutil.copytree(folder / "large", folder / "saved")
        for processes in (4, 2, 1):
            shutil.rmtree(folder / "large")
            shutil.copytree(saved, folder / "large")
            run(
                f"{processes} processes, third day",
                processes,
                limit if processes == 4 else 0,
                "run",
                str(paths["large"]),
            )
            predicted[processes] = predictions(folder / "large")
        export = ("export", str(paths["large"]), "--model", "fm", "--out", str(folder / "export"), "--no-compile")
        run("export", 1, 0, *export)
        apart = max(float(np.abs(predicted[count] - predicted[4]).max()) for count in (2, 1))
        manifest = json.loads((folder / "large" / "commits" / "train" / "fm" / "000001.json").read_text())
        sizes = {role: file["bytes"] >> 20 for role, file in manifest["files"].items() if role.startswith("model")}
        print(f"MiB of the files of weights that four processes wrote: {sizes}; predictions apart: {apart:.2g}")
        sys.exit(apart > 1e-5)


if __name__ == "__main__":
    main()
