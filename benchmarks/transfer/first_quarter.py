"""Gains of a scenario on the part of the stream that its figures skip: where settings are chosen.

python benchmarks/transfer/first_quarter.py examples/paper/single_vm_movielens.yaml stream.source.path=FOLDER
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch

import exfm

sys.path.insert(0, str(Path(__file__).parent.parent / "quality"))
from streams import beginning, first_scored, rows_by_window

WARM_UP = 0.25


def main() -> None:
    """Prints NE of every model, and its gain over its control where it has one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    whole = exfm.load_experiment(arguments.config, arguments.overrides)
    end_us = first_scored(rows_by_window(whole), whole.config.evaluation.skip)
    with tempfile.TemporaryDirectory() as folder:
        own = [*arguments.overrides, f"run_dir={folder}/run", f"evaluation.skip={WARM_UP}"]
        results = exfm.run(beginning(exfm.load_experiment(arguments.config, own), end_us))
    task = whole.schema.labels[0].name
    gains = {entry["model"]: entry["ne_gain_percent"] for entry in results["gains"] if entry["task"] == task}
    for name, model in results["models"].items():
        found = model["tasks"][task]
        gain = "" if gains.get(name) is None else f", gain {gains[name]:+.2f}%"
        print(f"{name}: {found['examples']} examples, NE {found['ne']:.4f}{gain}")


if __name__ == "__main__":
    main()
