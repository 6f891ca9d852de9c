"""Weight, temperature and table rate of standard distillation, on the part of the stream that the figures skip.

    python benchmarks/transfer/distillation.py examples/paper/recipe_synthetic.yaml stream.source.seed=7
    python benchmarks/transfer/distillation.py examples/paper/recipe_movielens.yaml stream.source.path=FOLDER

Every student is the experiment's ``alone``, taught by its ``fm``; all are trained in a single run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import torch
import yaml
from first_quarter import WARM_UP

import exfm

sys.path.insert(0, str(Path(__file__).parent.parent / "quality"))
from streams import beginning, first_scored, rows_by_window

COLUMNS = ("table rate", "weight", "temperature", "NE", "gain over alone %")
Setting = tuple[float, float, float]


def main() -> None:
    """Prints the table as Markdown, best first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--tables", default="0.2,0.4", help="table rates")
    parser.add_argument("--weights", default="1,3,10")
    parser.add_argument("--temperatures", default="1,2,4")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    tables, weights = numbers(arguments.tables), numbers(arguments.weights)
    settings = list(product(tables, weights, numbers(arguments.temperatures)))
    task, models = run(arguments.config, arguments.overrides, settings)
    alone = models["alone"]["tasks"][task]["ne"]
    print(f"FM: NE {models['fm']['tasks'][task]['ne']:.4f}; alone: NE {alone:.4f}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    ne_of = {setting: models[name_of(setting)]["tasks"][task]["ne"] for setting in settings}
    for setting in sorted(settings, key=ne_of.__getitem__):
        cells = " | ".join(f"{value:g}" for value in setting)
        print(f"| {cells} | {ne_of[setting]:.4f} | {100 * (1 - ne_of[setting] / alone):+.2f} |")


def numbers(text: str) -> list[float]:
    """Reads numbers between commas."""
    return [float(value) for value in text.split(",")]


def run(config: str, overrides: list[str], settings: list[Setting]) -> tuple[str, dict[str, Any]]:
    """Trains FM, ``alone`` and a student for each setting; returns the task's name, and results by model."""
    whole = exfm.load_experiment(config, overrides)
    end_us = first_scored(rows_by_window(whole), whole.config.evaluation.skip)
    content = yaml.safe_load(Path(config).read_text())
    alone = content["models"]["alone"]
    models = {"fm": content["models"]["fm"], "alone": alone}
    for setting in settings:
        tables, weight, temperature = setting
        transfer = [{"name": "direct", "teacher": "fm", "weight": weight, "temperature": temperature}]
        optimizer = {**alone["optimizer"], "tables": {"lr": tables}}
        models[name_of(setting)] = {**alone, "control": "alone", "optimizer": optimizer, "transfer": transfer}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "search.yaml"
        file.write_text(yaml.safe_dump({**content, "models": models, "compare": []}))
        changes = [*overrides, f"run_dir={folder}/run", f"evaluation.skip={WARM_UP}"]
        results = exfm.run(beginning(exfm.load_experiment(str(file), changes), end_us))
    return whole.schema.labels[0].name, results["models"]


def name_of(setting: Setting) -> str:
    """Names a student after its setting."""
    return "_".join(("t", *(f"{value:g}".replace(".", "p") for value in setting)))


if __name__ == "__main__":
    main()
