"""Measures the cost of a window beside its rows: many windows of few rows, with a tiny FM and two tiny students.

Printed are windows per second, milliseconds per window by phase, and the bytes of the run's folder by kind.

    python benchmarks/commits.py --windows 720 --rows 100
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

import exfm
from exfm.storage.disk_usage import disk_usage
from exfm.storage.workspace import Workspace

PHASES = ("data_s", "train_s", "supervise_s", "commit_s")


def experiment(run_dir: str, windows: int, rows: int) -> dict[str, Any]:
    """Describes an FM and two students of its predictions, on windows of an hour."""
    tiny = {"backbone": {"name": "mlp", "hidden": [16]}, "embedding_dim": 4}
    tiny |= {"features": ["user_id", "ad_id"], "tasks": ["click"]}
    student = {**tiny, "transfer": [{"name": "auxiliary_head", "teacher": "fm"}]}
    source = {"name": "synthetic_ads", "days": -(-windows // 24), "rows_per_day": 24 * rows}
    return {
        "name": "commits",
        "run_dir": run_dir,
        "stream": {"source": source, "window": "1h"},
        "models": {"fm": tiny, "first": student, "second": student},
        "parallel": {"name": "single", "device": "cpu"},
    }


def main() -> None:
    """Runs the windows, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--windows", type=int, default=720)
    parser.add_argument("--rows", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exfm-commits-") as folder:
        path = Path(folder, "experiment.yaml")
        path.write_text(yaml.safe_dump(experiment(f"{folder}/run", options.windows, options.rows)))
        loaded = exfm.load_experiment(str(path))
        start = time.perf_counter()
        results = exfm.run(loaded, lambda _: None, windows=options.windows)
        seconds = time.perf_counter() - start
        usage = disk_usage(Workspace(str(Path(folder, "run"))))
    spent = {phase.removesuffix("_s"): results["time"][phase] for phase in PHASES}
    spent["others (start, evaluation, report)"] = seconds - sum(spent.values())
    print(
        f"{options.windows} windows of {options.rows} rows: {seconds:.1f} s, {options.windows / seconds:.1f} windows/s"
    )
    for phase, of_phase in spent.items():
        print(f"{phase:<36} {1000 * of_phase / options.windows:8.2f} ms per window")
    for kind in dict.fromkeys(counted.kind for counted in usage):
        of_kind = [counted for counted in usage if counted.kind == kind]
        count = sum(counted.files for counted in of_kind)
        print(f"{kind:<36} {sum(counted.bytes for counted in of_kind):>12,} bytes in {count:,} files")


if __name__ == "__main__":
    main()
