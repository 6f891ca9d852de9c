"""The gains of a sweep over seeds as a table: means, 95% intervals over seeds, and how far they are past a baseline.

    exfm sweep examples/paper/single_vm_movielens.yaml --over seed=1,2,3,4,5 stream.source.path=FOLDER
    python benchmarks/transfer/table.py runs/single_vm_movielens/sweep --teacher fm --baseline distilled

Every seed is a pair: a model and its control start from equal weights and see equal batches. ``over the baseline`` is
the ratio of the mean gains; the last column is ``gain - 1.5 x the baseline's gain``, seed by seed, with its interval.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t

BAR = 1.5
COLUMNS = ("model", "task", "base rate", "FM NE", "NE", "control NE", "gain %", "transfer ratio")
COLUMNS += ("over the baseline", "gain - 1.5 x it")


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--teacher", default="fm", help="whose gain the transfer ratio is of")
    parser.add_argument("--baseline", action="append", default=[], help="MODEL, or MODEL=the models it is for, commas")
    arguments = parser.parse_args()
    runs = [json.loads(file.read_text()) for file in sorted(arguments.folder.glob("*/results.json"))]
    if not runs:
        parser.error(f"{arguments.folder}: no */results.json in it")
    entries = by_model(runs, arguments.teacher)
    baselines = dict(pair for given in arguments.baseline for pair in pairs_of(given, {model for model, _ in entries}))
    print(f"{len(runs)} seeds: {', '.join(str(run['seed']) for run in runs)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for (model, task), seeds in entries.items():
        baseline = entries.get((baselines.get(model, ""), task))
        print(row(model, task, seeds, baseline if baseline is not seeds else None))


def pairs_of(given: str, models: set[str]) -> list[tuple[str, str]]:
    """(model, its baseline) from MODEL=a,b, or for all models from MODEL."""
    baseline, _, named = given.partition("=")
    return [(model, baseline) for model in (named.split(",") if named else models)]


def by_model(runs: Sequence[dict[str, Any]], teacher: str) -> dict[tuple[str, str], list[dict[str, float]]]:
    """What each seed gave, by model and task."""
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for run in runs:
        for gain in run["gains"]:
            if gain["teacher"] != teacher:
                continue
            task = gain["task"]
            tasks = run["models"][gain["model"]]["tasks"][task]
            control = run["models"][gain["control"]]["tasks"][task]["ne"]
            found[gain["model"], task].append(
                {
                    "base_rate": tasks["base_rate"],
                    "ne": tasks["ne"],
                    "control": control,
                    "gain": gain["ne_gain_percent"],
                    "ratio": gain["transfer_ratio"],
                    "fm": control * (1 - gain["teacher_ne_gain_percent"] / 100),
                }
            )
    return found


def row(model: str, task: str, seeds: list[dict[str, float]], baseline: list[dict[str, float]] | None) -> str:
    """One line of the table."""
    column = {key: np.array([seed[key] for seed in seeds]) for key in seeds[0]}
    cells = [model, task, f"{column['base_rate'].mean():.1%}"]
    cells += [f"{column[key].mean():.4f}" for key in ("fm", "ne", "control")]
    cells += [interval(column["gain"]), interval(column["ratio"])]
    if baseline is None:
        cells += ["", ""]
    else:
        given = np.array([seed["gain"] for seed in baseline])
        cells += [f"{column['gain'].mean() / given.mean():.2f}", interval(column["gain"] - BAR * given)]
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
