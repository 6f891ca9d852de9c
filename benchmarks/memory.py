"""Peak memory of a run: `python benchmarks/memory.py [--days 3] [--resume-rows 8000000]`.

On a stream and on a stream ten times longer; and of a model with large tables beside the tensors that it must hold:
tables, the state of their optimizer, and the rest, which is the peak of the same model on as many rows with tables of
1,000 rows. Then of a run that goes on from a snapshot with a large table, beside that of the training before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parent / "speed"))
from bench import called
from ours import experiment
from rows import FEATURES, write

EXPERIMENT = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
ROWS_PER_DAY = 10_000
SMALL, LARGE, WIDTH = 1_000, 200_000, 16
MODEL = {"backbone": {"name": "mlp"}, "embedding_dim": WIDTH, "batch_size": 4096}
NARROW = {**MODEL, "embedding_dim": 4}


def peak_mib(days: int, folder: str) -> float:
    """Peak resident memory of an `exfm run`, in MiB."""
    overrides = [f"run_dir={folder}/{days}", f"stream.source.days={days}", f"stream.source.rows_per_day={ROWS_PER_DAY}"]
    return run_peak_mib(str(EXPERIMENT), *overrides)


def run_peak_mib(*arguments: str) -> float:
    """Peak resident memory of `exfm run` with some arguments, in MiB."""
    command = [sys.executable, "-m", "exfm", "run", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def table_peak_mib(table_rows: int, folder: Path) -> float:
    """Peak resident memory of a model on FEATURES tables, in MiB."""
    rows = folder / f"{table_rows}.parquet"
    write(rows, 65_536, table_rows, windows=4)
    given = ["--rows", str(rows), "--table-rows", str(table_rows), "--model", json.dumps(MODEL)]
    peak: float = called(Path(sys.executable), "ours.py", *given)["peak_mib"]
    return peak


def resume_peaks_mib(table_rows: int, folder: Path) -> tuple[float, float]:
    """Peak resident memory of training with a single table, and of going on from its snapshot, in MiB."""
    everything = folder / "everything.parquet"
    write(everything, 8_192, SMALL, windows=4)
    rows = pq.read_table(everything)
    (folder / "log").mkdir()
    config = experiment(folder / "log", table_rows, NARROW, {"run_dir": f"{folder}/resumed"})
    config["stream"]["source"]["features"] = config["stream"]["source"]["features"][:1]
    path = folder / "resumed.yaml"
    path.write_text(yaml.safe_dump(config))
    half = rows.num_rows // 2
    pq.write_table(rows.slice(0, half), folder / "log" / "0.parquet")
    trained = run_peak_mib(str(path))
    pq.write_table(rows.slice(half), folder / "log" / "1.parquet")
    return trained, run_peak_mib(str(path))


def main() -> None:
    """Prints peaks and ratios; exit status 1 when any is too high."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=3)
    parser.add_argument("--resume-rows", type=int, default=8_000_000)
    arguments = parser.parse_args()
    days = arguments.days
    with tempfile.TemporaryDirectory() as folder:
        short, long = peak_mib(days, folder), peak_mib(10 * days, folder)
        trained, resumed = resume_peaks_mib(arguments.resume_rows, Path(folder))
        rest, large = (table_peak_mib(rows, Path(folder)) for rows in (SMALL, LARGE))
    for length, peak in ((days, short), (10 * days, long)):
        print(f"{length * ROWS_PER_DAY:>9,} examples  {peak:7.0f} MiB")
    print(f"ratio {long / short:.3f} (at most 1.1)")
    held = FEATURES * LARGE * WIDTH * 4 * 2 / 2**20  # weights, and AdaGrad's number for each
    print(f"tables and their state {held:.0f} MiB, all else {rest:.0f} MiB, together {large:.0f} MiB at the peak")
    print(f"ratio {large / (held + rest):.3f} (at most 1.2)")
    print(
        f"a table of {arguments.resume_rows:,} x 4: {trained:.0f} MiB in training, {resumed:.0f} MiB to go on from it"
    )
    print(f"ratio {resumed / trained:.3f} (at most 1.2)")
    sys.exit(long > 1.1 * short or large > 1.2 * (held + rest) or resumed > 1.2 * trained)


if __name__ == "__main__":
    main()
