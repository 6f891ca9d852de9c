"""Learning rates and initial spread of a model without its teachers, chosen where the figures skip the stream.

    python benchmarks/transfer/tune.py examples/paper/single_vm_movielens.yaml --model vm stream.source.path=FOLDER

Every VM of examples/paper has the settings chosen here for its control: the tables' rate first, then the dense layers',
then the spread of new table rows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import exfm

sys.path.insert(0, str(Path(__file__).parent.parent / "quality"))
from streams import beginning, first_scored, rows_by_window

DENSE, TABLES, SPREADS = (0.001, 0.0005, 0.002, 0.004), (0.1, 0.05, 0.2, 0.4, 0.8), (0.05, 0.01, 0.1)


def main() -> None:
    """Prints NE at every setting that was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--model", required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    whole = exfm.load_experiment(arguments.config, [*arguments.overrides, f"seed={arguments.seed}"])
    end_us = first_scored(rows_by_window(whole), whole.config.evaluation.skip)
    alone = {**yaml.safe_load(Path(arguments.config).read_text()), "evaluation": {}, "compare": []}
    model = {**alone["models"][arguments.model], "transfer": [], "control": False, "supervision": {}}
    tried: dict[tuple[float, float, float], float] = {}

    def ne(dense: float, tables: float, spread: float) -> float:
        if (dense, tables, spread) not in tried:
            rates = {"dense": {"lr": dense}, "tables": {"lr": tables}}
            made = {**alone, "models": {arguments.model: {**model, "optimizer": rates, "embedding_init": spread}}}
            found = measured(made, arguments.model, arguments.overrides, arguments.seed, end_us)
            tried[dense, tables, spread] = found
            print(f"dense {dense}, tables {tables}, spread {spread}: NE {found:.4f}", flush=True)
        return tried[dense, tables, spread]

    tables = min(TABLES, key=lambda rate: ne(DENSE[0], rate, SPREADS[0]))
    dense = min(DENSE, key=lambda rate: ne(rate, tables, SPREADS[0]))
    spread = min(SPREADS, key=lambda width: ne(dense, tables, width))
    print(f"chosen for {arguments.model}: dense {dense}, tables {tables}, spread {spread}")


def measured(experiment: dict[str, Any], model: str, overrides: list[str], seed: int, end_us: int) -> float:
    """NE of a run on the beginning of the stream."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "experiment.yaml"
        file.write_text(yaml.safe_dump(experiment))
        loaded = exfm.load_experiment(str(file), [*overrides, f"seed={seed}", f"run_dir={folder}/run"])
        results = exfm.run(beginning(loaded, end_us))
    task = loaded.schema.labels[0].name
    return float(results["models"][model]["tasks"][task]["ne"])


if __name__ == "__main__":
    main()
