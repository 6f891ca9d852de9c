"""exfm's speed over a file of rows.py, from Parquet to committed windows, as one line of JSON.

    python benchmarks/speed/ours.py --rows FILE --table-rows 100000 --model '{"backbone": {"name": "wukong"}}'

The clock starts after the first chunk of the second window: start-up is told apart.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
import yaml
from rows import FEATURES

import exfm
from exfm.training.loop import Progress


def experiment(rows: Path, table_rows: int, model: dict[str, Any], run_dir: str) -> dict[str, Any]:
    """One model on all features, as an experiment file holds it."""
    features = [
        {"name": f"f{number}", "kind": "categorical", "rows": table_rows, "ids": "row"} for number in range(FEATURES)
    ]
    source = {
        "name": "parquet",
        "path": str(rows),
        "example_id": "example_id",
        "event_time": "event_time",
        "labels": [{"name": "click"}],
        "features": features,
    }
    stream = {"source": source, "window": "1h", "chunk_rows": 16384}
    return {"name": "speed", "run_dir": run_dir, "stream": stream, "models": {"fm": model}}


def measure(rows: Path, table_rows: int, model: dict[str, Any]) -> dict[str, Any]:
    """Runs it and returns the figures."""
    folder = tempfile.mkdtemp(prefix="exfm-speed-")
    try:
        path = Path(folder) / "experiment.yaml"
        path.write_text(yaml.safe_dump(experiment(rows, table_rows, model, f"{folder}/run")))
        loaded = exfm.load_experiment(str(path))
        seen: list[tuple[int, float, int]] = []

        def note(progress: Progress) -> None:
            seen.append((progress.window.index, time.perf_counter(), progress.rows))

        started = time.perf_counter()
        results = exfm.run(loaded, note)
        first = seen[0][0]
        # A window's commit lies between its last chunk and the next one's first: the next one's time has it.
        begun = next(i for i, (window, _, _) in enumerate(seen) if window != first)
        rows_timed = sum(count for _, _, count in seen[begun + 1 :])
        seconds = seen[-1][1] - seen[begun][1]
    finally:
        shutil.rmtree(folder)
    task = results["models"]["fm"]["tasks"]["click"]
    return {
        "examples_per_second": rows_timed / seconds,
        "auc": task["auc"],
        "ne": task["ne"],
        "first_chunk_s": seen[0][1] - started,
        "time": results["time"],
        "flops_per_example": results["models"]["fm"]["flops_per_example"],
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rows": pq.read_metadata(rows).num_rows,
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--table-rows", type=int, required=True)
    parser.add_argument("--model", type=json.loads, required=True)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments.rows, arguments.table_rows, arguments.model)))


if __name__ == "__main__":
    main()
