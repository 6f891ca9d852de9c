"""Peak memory of a run on a stream and on one ten times longer: `python benchmarks/memory.py [--days 3]`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

EXPERIMENT = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
ROWS_PER_DAY = 10_000


def peak_mib(days: int, folder: str) -> float:
    """Peak resident memory of one `exfm run`, in MiB."""
    overrides = [f"run_dir={folder}/{days}", f"stream.source.days={days}", f"stream.source.rows_per_day={ROWS_PER_DAY}"]
    command = [sys.executable, "-m", "exfm", "run", str(EXPERIMENT), *overrides]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed with status {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def main() -> None:
    """Prints both peaks and their ratio; exit status 1 when the longer stream takes over a tenth more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=3)
    days = parser.parse_args().days
    with tempfile.TemporaryDirectory() as folder:
        short, long = peak_mib(days, folder), peak_mib(10 * days, folder)
    for length, peak in ((days, short), (10 * days, long)):
        print(f"{length * ROWS_PER_DAY:>9,} examples  {peak:7.0f} MiB")
    print(f"ratio {long / short:.3f} (at most 1.1)")
    sys.exit(long > 1.1 * short)


if __name__ == "__main__":
    main()
