"""SIGKILL at ten random moments of a quickstart run: `python benchmarks/soak_kill.py [--rounds 3]`.

Every round runs the experiment once undisturbed and once killed ten times at random moments, restarting each time, and
compares the two results.json but for times.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EXPERIMENT = Path(__file__).parents[1] / "examples" / "quickstart.yaml"
KILLS = 10


def command(run_dir: Path, seed: int) -> list[str]:
    overrides = [f"run_dir={run_dir}", f"seed={seed}", "stream.source.days=28", "stream.window=1d"]
    return [sys.executable, "-m", "exfm", "run", str(EXPERIMENT), *overrides]


def killed(command: list[str], name: str, kills: int, seconds: tuple[float, float], seed: int) -> None:
    """Runs a job to its end, with a number of kills before, each so many seconds after a start."""
    moments = random.Random(seed)
    done = 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            process.wait(timeout=moments.uniform(*seconds) if done < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            done += 1
            continue
        print(f"{name}: {done} kills, status {process.returncode}", flush=True)
        return


def timeless(path: Path) -> dict[str, Any]:
    """The results without the figures that the clock decides."""
    results: dict[str, Any] = json.loads(path.read_text())
    results.pop("time")
    for model in results["models"].values():
        model.pop("train_examples_per_second")
    return results


def one_round(folder: Path, seed: int) -> bool:
    """Whether the killed run ended with the undisturbed run's results."""
    start = time.monotonic()
    subprocess.run(command(folder / "whole", seed), check=True, capture_output=True)
    whole_s = time.monotonic() - start
    moments = random.Random(seed)
    kills = 0
    while kills < KILLS:
        process = subprocess.Popen(
            command(folder / "killed", seed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(timeout=moments.uniform(0.2, max(whole_s * 0.2, 6.0)))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:
            break
    subprocess.run(command(folder / "killed", seed), check=True, capture_output=True)
    equal = timeless(folder / "whole" / "results.json") == timeless(folder / "killed" / "results.json")
    print(f"seed {seed}: {kills} kills, run of {whole_s:.0f} s: {'equal' if equal else 'DIFFERENT'}", flush=True)
    return equal


def main() -> None:
    """Exit status 1 when any round differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        outcomes = [one_round(Path(folder) / str(seed), seed) for seed in range(rounds)]
    sys.exit(not all(outcomes))


if __name__ == "__main__":
    main()
