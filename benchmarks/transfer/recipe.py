"""The share of the FM's remaining lead that reaches a student, VM by VM, from a sweep over seeds.

    exfm sweep examples/paper/recipe_synthetic.yaml --over seed=1,2,3,4,5
    python benchmarks/transfer/recipe.py runs/recipe_synthetic/sweep first_own second_own

Every model is measured on the examples of a VM, which are those of the model OWN that sees them alone, as the
experiment's ``compare`` has it. ``lead`` is the share of the way from ``alone``, the best without an FM, to the FM.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from table import interval

COLUMNS = ("VM", "model", "base rate", "NE", "gain over own traffic %", "gain over alone %", "lead %")


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("own", nargs="+", help="the models that see a VM's traffic")
    arguments = parser.parse_args()
    files = sorted(arguments.folder.glob("*/results.json"))
    if not files:
        parser.error(f"{arguments.folder}: no */results.json in it")
    runs = [json.loads(file.read_text()) for file in files]
    print(f"{len(runs)} seeds: {', '.join(str(run['seed']) for run in runs)}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for own in arguments.own:
        entries = [{entry["model"]: entry for entry in run["comparisons"] if entry["baseline"] == own} for run in runs]
        rate = np.mean(
            [
                run["models"][own]["tasks"][next(iter(seed.values()))["task"]]["base_rate"]
                for run, seed in zip(runs, entries, strict=True)
            ]
        )
        print(f"| {own} | {own} | {rate:.1%} | {ne(entries, 'alone', 'baseline_ne').mean():.4f} |  |  |  |")
        for model in entries[0]:
            print(f"| {own} | {model} | {rate:.1%} | {' | '.join(cells(entries, model))} |")


def ne(entries: list[dict[str, Any]], model: str, key: str = "ne") -> np.ndarray:
    """NE of a model on a VM's examples, seed by seed."""
    return np.array([seed[model][key] for seed in entries])


def cells(entries: list[dict[str, Any]], model: str) -> list[str]:
    """NE, gains in percent with 95% intervals over seeds, and the share of the FM's lead."""
    own, alone, fm, model_ne = (
        ne(entries, model, "baseline_ne"),
        ne(entries, "alone"),
        ne(entries, "fm"),
        ne(entries, model),
    )
    gains = [interval(100 * (1 - model_ne / base)) for base in (own, alone)]
    lead = "" if model in ("alone", "fm") else interval(100 * (alone - model_ne) / (alone - fm))
    return [f"{model_ne.mean():.4f}", gains[0], "" if model == "alone" else gains[1], lead]


if __name__ == "__main__":
    main()
