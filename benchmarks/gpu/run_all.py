"""Runs the scripts of this folder, each in a new process with a time limit: `python benchmarks/gpu/run_all.py`.

A script that fails or takes too long does not stop the others; the rows that it has measured are in its JSON file. The
exit status is 1 where any did.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).parent
# The questions that matter most first, because a machine may be lent for a short time.
SCRIPTS = ("backbones", "sequences", "pipeline", "fp8", "memory", "graphs", "startup")


def run(script: str, options: Sequence[str], limit_s: float) -> str:
    """Runs a script and returns its outcome."""
    began = time.monotonic()
    try:
        status = subprocess.run([sys.executable, str(HERE / f"{script}.py"), *options], timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {limit_s:.0f} s"
    outcome = "done" if not status else f"failed with status {status}"
    return f"{outcome} in {time.monotonic() - began:.0f} s"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scripts and prints their outcomes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of all JSON files")
    parser.add_argument("--limit", type=float, default=480, help="seconds after which a script is stopped")
    parser.add_argument("--scripts", nargs="+", choices=SCRIPTS, default=SCRIPTS, metavar="SCRIPT", help="these alone")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, which check the scripts on a CPU")
    read = parser.parse_args(arguments)
    subprocess.run([sys.executable, str(HERE / "machine.py")], check=False)
    # A script leaves out what would not fit into nine tenths of the limit, so that it ends by itself.
    options = ["--out", str(read.out), "--seconds", str(0.9 * read.limit - 10), *(["--tiny"] if read.tiny else [])]
    outcomes: dict[str, str] = {}
    for script in read.scripts:
        print(f"\n== {script}", flush=True)
        outcomes[script] = run(script, options, read.limit)
    print()
    for script, outcome in outcomes.items():
        print(f"{script:<10} {outcome:<24} {read.out / script}.json")
    return int(not all(outcome.startswith("done") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
