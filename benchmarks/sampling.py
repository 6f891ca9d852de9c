"""Compares a run on all rows of the simulated stream with a run on a tenth of its negatives and `sampling_rate: 0.1`.

Each run is scored on the rows that it reads. With a fifth of the rows, models take a fifth of the steps: a smaller
batch gives them more. Calibration is against the true probabilities: the sum of the predictions over the sum of the
true probabilities, by the weights of the rows.

    python benchmarks/sampling.py --days 14 --seeds 0 1 2 --batch-size 64
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

import exfm
from exfm.supervision.store import Store

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart.yaml"
LABEL = "click"


def rows_of(seed: int, days: int) -> tuple[dict[str, Any], pa.Table]:
    """Returns the quickstart's experiment, and all rows of its stream."""
    config = yaml.safe_load(QUICKSTART.read_text())
    config["seed"] = seed
    config["stream"]["source"] |= {"days": days, "seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "experiment.yaml")
        path.write_text(yaml.safe_dump(config))
        experiment = exfm.load_experiment(str(path))
    span = experiment.source.time_range()
    batches = experiment.source.read(exfm.sources.Window(0, span.start_us, span.end_us))
    schema = experiment.source.schema().model_dump(mode="json")
    labels = [label for label in schema["labels"] if label["name"] == LABEL]
    source = {"name": "parquet", **schema, "labels": labels}
    config["stream"]["source"] = source
    for model in config["models"].values():
        model["tasks"] = [LABEL]
    return config, pa.Table.from_batches(list(batches))


def run(config: dict[str, Any], rows: pa.Table, folder: Path, rate: float) -> dict[str, float]:
    """Runs the experiment on rows; returns figures of the VM."""
    folder.mkdir()
    pq.write_table(rows, folder / "log.parquet", row_group_size=50_000)
    source = {**config["stream"]["source"], "path": str(folder / "log.parquet")}
    source["labels"] = [{**label, "sampling_rate": rate} for label in source["labels"]]
    config = {**config, "run_dir": str(folder / "run"), "stream": {**config["stream"], "source": source}}
    path = folder / "experiment.yaml"
    path.write_text(yaml.safe_dump(config))
    results = exfm.run(exfm.load_experiment(str(path)))
    store = Store(str(folder / "run"), {})
    skipped = results["models"]["vm"]["tasks"][LABEL]["examples"]
    tables = [store.predictions("vm", window) for window in store.windows("vm")]
    scored = pa.concat_tables(tables).slice(sum(table.num_rows for table in tables) - skipped)
    weight = np.ones(scored.num_rows)
    if f"weight_{LABEL}" in scored.column_names:
        weight = scored.column(f"weight_{LABEL}").to_numpy()
    predicted = scored.column(f"prediction_{LABEL}").to_numpy() @ weight
    true = scored.column(f"oracle_{LABEL}").to_numpy() @ weight
    (gain,) = (gain for gain in results["gains"] if gain["model"] == "vm" and gain["task"] == LABEL)
    return {
        "rows": rows.num_rows,
        "NE": results["models"]["vm"]["tasks"][LABEL]["ne"],
        "predicted / true": predicted / true,
        "gain %": gain["ne_gain_percent"],
        "low": gain["interval95"][0],
        "high": gain["interval95"][1],
    }


def with_batch_size(config: dict[str, Any], size: int) -> dict[str, Any]:
    """Returns the experiment with a batch size for all of its models."""
    models = {name: {**model, "batch_size": size} for name, model in config["models"].items()}
    return {**config, "models": models}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--days", type=int, default=14)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--batch-size", type=int, default=512, help="of the models on the tenth of the negatives")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        config, rows = rows_of(seed, arguments.days)
        is_kept = pc.or_(
            pc.equal(rows.column(LABEL).cast(pa.int8()), 1),
            pa.array(np.random.default_rng(seed).random(rows.num_rows) < 0.1),
        )
        with tempfile.TemporaryDirectory() as folder:
            runs = [("all rows", rows, 1.0, 512), ("a tenth", rows.filter(is_kept), 0.1, arguments.batch_size)]
            for name, table, rate, batch_size in runs:
                figures = run(with_batch_size(config, batch_size), table, Path(folder, name.replace(" ", "-")), rate)
                print(f"seed {seed}, {name}: " + ", ".join(f"{key} {value:,.4f}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
