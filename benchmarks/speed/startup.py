"""Where the time to the first trained chunk goes, from the start of a process: `startup.py FILE` prints it.

Each start is a separate process and a separate run; printed is the median of each part.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

PARTS = {
    "imported": "Python starts and imports exfm",
    "loaded": "torch and the plugins are imported, the experiment is checked",
    "imported_loop": "the training loop is imported",
    "built": "models are built",
    "first_rows": "the first rows are read and decoded",
    "first_chunk": "the first chunk is predicted and trained on",
}


class _FirstChunkError(Exception):
    """The first chunk is done."""


def start(experiment: str, began: float) -> dict[str, float]:
    """Seconds since ``began`` (of ``time.time``) at the end of each part."""
    at = {}
    import exfm

    at["imported"] = time.time() - began
    with tempfile.TemporaryDirectory(prefix="exfm-startup-") as folder:
        loaded = exfm.load_experiment(experiment, [f"run_dir={folder}/run"])
        at["loaded"] = time.time() - began
        from exfm.bookkeeping.progress import Progress
        from exfm.experiment.run import build_plan
        from exfm.supervision.store import Store
        from exfm.training.loop import StreamLoop

        at["imported_loop"] = time.time() - began

        def stop(_: Progress) -> None:
            raise _FirstChunkError

        loop = StreamLoop(loaded, Store(loaded.run_dir), build_plan(loaded), stop)
        at["built"] = time.time() - began
        try:
            loop.advance()
        except _FirstChunkError:
            at["first_chunk"] = time.time() - began
    at["first_rows"] = at["built"] + loop.clock.data
    return at


def main() -> None:
    """Prints the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.began is not None:
        print(json.dumps(start(arguments.experiment, arguments.began)))
        return
    from bench import called  # not in the process that is measured: it imports much

    starts = [
        called(Path(sys.executable), Path(__file__).name, arguments.experiment, "--began", str(time.time()))
        for _ in range(arguments.repeats)
    ]
    before = dict.fromkeys(range(arguments.repeats), 0.0)
    for part, words in PARTS.items():
        print(f"{median(one[part] - before[number] for number, one in enumerate(starts)):6.2f} s  {words}")
        before = {number: one[part] for number, one in enumerate(starts)}
    print(f"{median(before.values()):6.2f} s  in all")


if __name__ == "__main__":
    main()
