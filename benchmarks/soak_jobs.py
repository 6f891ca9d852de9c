"""Three jobs over one workspace, each killed with SIGKILL at thirty random moments: `python benchmarks/soak_jobs.py`.

The FM's trainer, its labeller and the VM's trainer follow the stream at the same time and are restarted whenever they
are killed. The end is compared with one undisturbed `exfm run`: results.json but for times, and the store must hold
each (teacher, example) once.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pyarrow.parquet as pq
from soak_kill import EXPERIMENT, timeless

KILLS = 30
JOBS = (("train", "fm"), ("supervise", "fm"), ("train", "vm"))
OVERRIDES = ("models.fm.supervision.delay=1d", "stream.source.days=40", "stream.source.rows_per_day=4000")


def exfm(stage: str, run_dir: Path, *options: str) -> list[str]:
    """A command line over one run_dir."""
    return [sys.executable, "-m", "exfm", stage, str(EXPERIMENT), f"run_dir={run_dir}", *OVERRIDES, *options]


def killed(stage: str, model: str, run_dir: Path, seed: int) -> None:
    """Runs a job to its end, killing it thirty times on the way."""
    moments = random.Random(seed)
    command = exfm(stage, run_dir, "--model", model, "--follow", "--idle-timeout", "60")
    kills = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(0.5, 16.0) if kills < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            continue
        print(f"{stage} {model}: {kills} kills, status {process.returncode}", flush=True)
        return


def main() -> None:
    """Exit status 1 when the results differ or an example is supervised twice."""
    with tempfile.TemporaryDirectory() as folder:
        whole, jobs = Path(folder) / "whole", Path(folder) / "jobs"
        subprocess.run(exfm("run", whole), check=True, capture_output=True)
        threads = [threading.Thread(target=killed, args=(*job, jobs, seed)) for seed, job in enumerate(JOBS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        subprocess.run(exfm("run", jobs), check=True, capture_output=True)
        equal = timeless(whole / "results.json") == timeless(jobs / "results.json")
        examples = pq.read_table(jobs / "supervision" / "fm", columns=["example_id"]).column("example_id").to_pylist()
    print(
        f"results {'equal' if equal else 'DIFFERENT'}; {len(examples)} rows, {len(set(examples))} examples supervised"
    )
    sys.exit(not equal or len(examples) != len(set(examples)))


if __name__ == "__main__":
    main()
