"""exfm's speed over a file of rows.py, from Parquet to committed windows, as a line of JSON.

    python benchmarks/speed/ours.py --rows FILE --table-rows 100000 --model '{"backbone": {"name": "wukong"}}'

Timed is from the first chunk of the second window to the first of the last one, commits between windows and all; what
it takes to the first chunk of all is told apart.
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
from exfm.bookkeeping.progress import Progress

Settings = dict[str, Any]


def experiment(rows: Path, table_rows: int, model: Settings, run: Settings) -> Settings:
    """A model on all features, as an experiment file holds it. ``run``: its keys of the run itself."""
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
    return {"name": "speed", **run, "stream": stream, "models": {"fm": model}}


def measure(rows: Path, table_rows: int, model: Settings, background: bool) -> Settings:
    """Runs it and returns the figures."""
    folder = tempfile.mkdtemp(prefix="exfm-speed-")
    try:
        path = Path(folder) / "experiment.yaml"
        run = {"run_dir": f"{folder}/run", "save_in_background": background}
        path.write_text(yaml.safe_dump(experiment(rows, table_rows, model, run)))
        loaded = exfm.load_experiment(str(path))
        seen: list[tuple[int, float, float, int]] = []

        def note(progress: Progress) -> None:
            seen.append((progress.window.index, time.perf_counter(), time.process_time(), progress.rows))

        started = time.perf_counter()
        results = exfm.run(loaded, note)
        # From the first chunk of the second window to that of the last: as many commits as windows of rows.
        last = seen[-1][0]
        begun, ended = (next(i for i, (window, *_) in enumerate(seen) if window == number) for number in (1, last))
        rows_timed = sum(count for *_, count in seen[begun + 1 : ended + 1])
        seconds, cpu_seconds = (seen[ended][clock] - seen[begun][clock] for clock in (1, 2))
    finally:
        shutil.rmtree(folder)
    task = results["models"]["fm"]["tasks"]["click"]
    return {
        "examples_per_second": rows_timed / seconds,
        "examples_per_cpu_second": rows_timed / cpu_seconds,
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
    parser.add_argument("--save-in-background", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = measure(arguments.rows, arguments.table_rows, arguments.model, arguments.save_in_background)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
