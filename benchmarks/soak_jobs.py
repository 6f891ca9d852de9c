"""Three jobs over a workspace, each killed with SIGKILL at thirty random moments: `python benchmarks/soak_jobs.py`.

The FM's trainer, its labeller and the VM's trainer follow the stream at the same time and are restarted whenever they
are killed. The end is compared with an undisturbed `exfm run`: results.json but for times, and the store must hold
each (teacher, example) once.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pyarrow.parquet as pq
from soak_kill import EXPERIMENT, killed, timeless

KILLS = 30
JOBS = (("train", "fm"), ("supervise", "fm"), ("train", "vm"))
OVERRIDES = ("models.fm.supervision.delay=1d", "stream.source.days=40", "stream.source.rows_per_day=4000")


def exfm(stage: str, run_dir: Path, *options: str) -> list[str]:
    """A command line over the same run_dir."""
    return [sys.executable, "-m", "exfm", stage, str(EXPERIMENT), f"run_dir={run_dir}", *OVERRIDES, *options]


def main() -> None:
    """Exit status 1 when the results differ or an example is supervised twice."""
    with tempfile.TemporaryDirectory() as folder:
        whole, jobs = Path(folder) / "whole", Path(folder) / "jobs"
        subprocess.run(exfm("run", whole), check=True, capture_output=True)
        threads: list[threading.Thread] = []
        for seed, (stage, model) in enumerate(JOBS):
            command = exfm(stage, jobs, "--model", model, "--follow", "--idle-timeout", "60")
            arguments = (command, f"{stage} {model}", KILLS, (0.5, 16.0), seed)
            threads.append(threading.Thread(target=killed, args=arguments))
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
