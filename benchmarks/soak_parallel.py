"""A process of several, killed with SIGKILL at a random moment: `python benchmarks/soak_parallel.py [--rounds 10]`.

Each round is a separate run under torchrun, which starts all processes again when any has died. Its results.json is
compared with that of an undisturbed run of the same plan on as many processes, but for times, and so are its tables of
predictions and supervision; no file of rows may be left that no manifest names. Every other round saves in the
background. A run that is over before its kill is done again with another moment.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
from soak_kill import EXPERIMENT, timeless

from exfm.storage.commits import Stage
from exfm.storage.row_shards import row_records
from exfm.supervision.store import Store
from exfm.supervision.stored_rows import read_window

FOLDERS: dict[str, Stage] = {"predictions": "train", "supervision": "supervise"}
# Ads enough for a table of more than 1 MiB, of which snapshots have the changed rows.
OVERRIDES = ("stream.source.days=4", "stream.source.rows_per_day=600", "stream.source.ads=2000")
COMMITS = 12  # three models, four days


def start(run_dir: Path, processes: int, *overrides: str) -> subprocess.Popen[bytes]:
    """A run under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    given = ["--max-restarts=2", "-m", "exfm", "run", str(EXPERIMENT), f"run_dir={run_dir}", *OVERRIDES, *overrides]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*launch, *given], env=environment, stdout=subprocess.DEVNULL, stderr=(run_dir.parent / "errors").open("ab")
    )


def workers(torchrun: int) -> list[int]:
    """The processes that torchrun has started."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    return [int(child) for child in children if b"exfm" in Path(f"/proc/{child}/cmdline").read_bytes()]


def commits(run_dir: Path) -> int:
    """How many windows of a model a run has committed."""
    return len(list(run_dir.glob("commits/train/*/*.json")))


def rows(run_dir: Path) -> dict[tuple[str, str, int], pa.Table]:
    """The rows of each model and window; exits where a file of rows is not in any manifest."""
    store, tables, paths = Store(str(run_dir)), {}, set[str]()
    for folder, stage in FOLDERS.items():
        for model in store.workspace.names(f"commits/{stage}"):
            for window in store.log.windows(stage, model):
                records = row_records(store.log.load(stage, model, window).files)
                tables[folder, model, window] = read_window(store.workspace, records)
                paths |= {record.path for record in records}
    stored = {str(path.relative_to(run_dir)) for folder in FOLDERS for path in run_dir.glob(f"{folder}/*/*")}
    if stored != paths:
        sys.exit(f"{run_dir}: {sorted(stored ^ paths)}")
    return tables


def kill_one(job: subprocess.Popen[bytes], run_dir: Path, moments: random.Random) -> bool:
    """Kills a process of a job a moment after a random commit; whether the job had not ended before."""
    wanted = moments.randint(0, COMMITS - 2)
    while job.poll() is None and commits(run_dir) < wanted:
        time.sleep(0.1)
    time.sleep(moments.uniform(0, 3))
    running = workers(job.pid) if job.poll() is None else []
    if running:
        os.kill(moments.choice(running), signal.SIGKILL)
    return bool(running)


def main() -> None:
    """Exit status 1 when any round fails or differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="The first round's number, and seed.")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--plan", default="{name: hsdp_2d}")
    asked = parser.parse_args()
    plan, passed = f"parallel={asked.plan}", 0
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        whole = Path(folder) / "whole" / "run"
        whole.parent.mkdir()
        if start(whole, asked.processes, plan).wait():
            sys.exit((whole.parent / "errors").read_text())
        print(f"undisturbed: {time.monotonic() - began:.0f} s, {commits(whole)} commits", flush=True)
        for number in range(asked.first, asked.first + asked.rounds):
            moments, killed = random.Random(number), False
            while not killed:
                run_dir = Path(tempfile.mkdtemp(dir=folder)) / "run"
                job = start(run_dir, asked.processes, plan, f"save_in_background={str(number % 2 == 1).lower()}")
                killed = kill_one(job, run_dir, moments)
                done = commits(run_dir)
                status = job.wait()
                if status:
                    sys.exit(f"round {number}: status {status}\n{(run_dir.parent / 'errors').read_text()[-3000:]}")
            equal = timeless(run_dir / "results.json") == timeless(whole / "results.json")
            equal = equal and rows(run_dir) == rows(whole)
            passed += equal
            print(f"round {number}: killed after {done} commits: {'equal' if equal else 'DIFFERENT'}", flush=True)
    print(f"{passed} of {asked.rounds} rounds passed")
    sys.exit(passed < asked.rounds)


if __name__ == "__main__":
    main()
