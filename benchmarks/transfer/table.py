"""The gains of a sweep over seeds as a table: means, 95% intervals over seeds, and how far they are past a baseline.

    exfm sweep examples/paper/single_vm_movielens.yaml --over seed=1,2,3,4,5 stream.source.path=FOLDER
    python benchmarks/transfer/table.py runs/single_vm_movielens/sweep distilled,auxiliary,vm

A group of models names its baseline first: the model whose control all of the group are measured against, which has the
best settings that were found for it. ``over the baseline`` is the ratio of the mean gains; the last column is
``gain - 1.5 x the baseline's gain``, seed by seed, with its interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

BAR = 1.5
COLUMNS = (
    *("model", "base rate", "FM NE", "NE", "control NE", "gain %", "gain share"),
    *("over the baseline", "gain - 1.5 x it"),
)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="+", help="BASELINE,MODEL,...")
    parser.add_argument("--teacher", default="fm", help="whose gain the gain share is of")
    parser.add_argument("--points", default="*", help="which points of the sweep, as a glob of their folders")
    arguments = parser.parse_args()
    runs = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob(f"{arguments.points}/results.json"))]
    if not runs:
        parser.error(f"{arguments.folder}: no {arguments.points}/results.json in it")
    print(f"{len(runs)} seeds: {', '.join(str(run['seed']) for run in runs)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for group in arguments.groups:
        baseline, *others = group.split(",")
        given = figures(runs, baseline, baseline, arguments.teacher)
        print(row(baseline, given, None))
        for model in others:
            print(row(model, figures(runs, model, baseline, arguments.teacher), given["gain"]))


def figures(runs: Sequence[dict[str, Any]], model: str, baseline: str, teacher: str) -> dict[str, np.ndarray]:
    """The gain of each seed in a model's first task, against the control of another that sees the same examples."""
    found: list[dict[str, float]] = []
    for run in runs:
        pair = next(gain for gain in run["gains"] if (gain["model"], gain["teacher"]) == (baseline, teacher))
        own, control = (run["models"][name]["tasks"][pair["task"]] for name in (model, pair["control"]))
        assert own["examples"] == control["examples"]
        gain, fm_gain = 100 * (1 - own["ne"] / control["ne"]), pair["teacher_ne_gain_percent"]
        numbers = {"base_rate": own["base_rate"], "ne": own["ne"], "control": control["ne"], "gain": gain}
        found.append({**numbers, "ratio": gain / fm_gain, "fm": control["ne"] * (1 - fm_gain / 100)})
    return {key: np.array([seed[key] for seed in found]) for key in found[0]}


def row(model: str, seeds: dict[str, np.ndarray], baseline: np.ndarray | None) -> str:
    """A line of the table."""
    cells = [model, f"{seeds['base_rate'].mean():.1%}"]
    cells += [f"{seeds[key].mean():.4f}" for key in ("fm", "ne", "control")]
    cells += [interval(seeds["gain"]), interval(seeds["ratio"])]
    if baseline is None:
        cells += ["", ""]
    else:
        cells += [f"{seeds['gain'].mean() / baseline.mean():.2f}", interval(seeds["gain"] - BAR * baseline)]
    return f"| {' | '.join(cells)} |"


def interval(values: np.ndarray) -> str:
    """Mean and 95% interval of independent values, by Student's t."""
    mean, count = float(values.mean()), values.size
    if count < 2:
        return f"{mean:+.2f}"
    half = float(t.ppf(0.975, count - 1)) * float(values.std(ddof=1)) / count**0.5
    return f"{mean:+.2f} ({mean - half:+.2f} to {mean + half:+.2f})"


if __name__ == "__main__":
    main()
