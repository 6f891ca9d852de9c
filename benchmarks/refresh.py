"""Time in which a running predictor takes over new weights: `python benchmarks/refresh.py`.

A model with one large table is trained for two windows, exported, and given the weights of either snapshot in turn
while a thread asks for predictions. Printed are the time of ``Predictor.refresh``, its processor time, and the time of
requests while it ran and otherwise. The files are in the page cache, as they are just after they have been written.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

import exfm
from exfm.serving import load
from exfm.serving.export import Form, export
from exfm.supervision.store import Store

ROWS, DAY_US, DIM = 2_000, 86_400_000_000, 32


def trained(folder: Path, table_rows: int) -> exfm.Experiment:
    """Runs two days of a small log whose ids are in a large table."""
    random = np.random.default_rng(0)
    start_us = 1_700_006_400_000_000
    times = start_us + np.sort(random.integers(0, 2 * DAY_US, ROWS))
    log = pa.table(
        {
            "example_id": np.arange(ROWS),
            "event_time": pa.array(times, pa.timestamp("us", "UTC")),
            "user": random.integers(0, 1 << 40, ROWS),
            "price": random.normal(size=ROWS),
            "click": random.integers(0, 2, ROWS).astype(np.int8),
        }
    )
    pq.write_table(log, folder / "log.parquet")
    source = {
        "name": "parquet",
        "path": str(folder / "log.parquet"),
        "labels": [{"name": "click"}],
        "features": [
            {"name": "user", "kind": "categorical", "rows": table_rows},
            {"name": "price", "kind": "dense"},
        ],
    }
    config = {
        "name": "refresh",
        "run_dir": str(folder / "run"),
        "stream": {"source": source, "window": "1d"},
        "models": {"vm": {"backbone": {"name": "dlrm"}, "embedding_dim": DIM}},
        "parallel": {"name": "single", "device": "cpu"},
    }
    (folder / "refresh.yaml").write_text(yaml.safe_dump(config))
    experiment = exfm.load_experiment(str(folder / "refresh.yaml"))
    exfm.run(experiment)
    return experiment


def measure(folder: Path, table_rows: int, count: int, compiled: bool) -> None:
    """Prints the times."""
    experiment, out = trained(folder, table_rows), folder / "out"
    second, first = (snapshot.version for snapshot in Store(experiment.run_dir).snapshots.committed("vm"))
    export(experiment, "vm", str(out), Form(compiled=compiled), at=str(first), compute_figures=False)
    descriptions = [(out / "inputs.json").read_bytes()]
    export(experiment, "vm", str(out), at=str(second), compute_figures=False, weights_only=True)
    descriptions.append((out / "inputs.json").read_bytes())
    predictor, rows = load(str(out)), [{"user": 17, "price": 0.5}]
    size_mb = (out / predictor.description.weights_file).stat().st_size / 1e6
    requests: list[tuple[float, float]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            began = time.perf_counter()
            predictor.predict(rows)
            requests.append((began, time.perf_counter()))

    asking = threading.Thread(target=ask)
    asking.start()
    spans: list[tuple[float, float]] = []
    processor_ms: list[float] = []
    for number in range(count):
        (out / "inputs.json").write_bytes(descriptions[number % 2])
        began, began_s = time.perf_counter(), time.thread_time()
        assert predictor.refresh()
        spans.append((began, time.perf_counter()))
        processor_ms.append((time.thread_time() - began_s) * 1e3)
        time.sleep(0.2)
    ended.set()
    asking.join()
    refreshes_ms = np.array([end - begin for begin, end in spans]) * 1e3
    during = np.array([any(begin < span[1] and end > span[0] for span in spans) for begin, end in requests])
    requests_ms = np.array([end - begin for begin, end in requests]) * 1e3
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {size_mb:,.0f} MB of weights")
    print(f"refresh: median {np.median(refreshes_ms):.1f} ms, longest {refreshes_ms.max():.1f} ms of {count}; ", end="")
    print(f"processor time: median {np.median(processor_ms):.1f} ms")
    for name, chosen in (("while refreshing", during), ("otherwise", ~during)):
        times_ms = requests_ms[chosen]
        print(
            f"requests {name}: {times_ms.size:,}, median {np.median(times_ms):.2f} ms, "
            f"p99 {np.percentile(times_ms, 99):.2f} ms, longest {times_ms.max():.1f} ms; none failed"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_400_000, help="of the table, of 32 numbers each")
    parser.add_argument("--count", type=int, default=30, help="refreshes")
    parser.add_argument("--no-compile", action="store_true", help="the interpreted program instead of machine code")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), options.rows, options.count, not options.no_compile)


if __name__ == "__main__":
    main()
