"""exfm beside FuxiCTR: the same rows in the same batches, a single pass, each batch predicted before it is trained on.

    benchmarks/quality/fuxictr/setup.sh
    python benchmarks/quality/compare.py --data movielens --path FOLDER --seeds 3

Both sides choose their learning rates on the part of the stream that the figures skip, with seed 0. Interrupted, it
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from campaign import Campaign, Record, best, key_of, machine, missing
from export import Exported, export
from run import shortened
from tables import spread, table

from exfm.evaluation.metrics import Moments, auc

HERE = Path(__file__).parent
PAIRS = (("wukong", "WuKong"), ("mlp+din", "DIN"))
Settings = dict[str, Any]


class FuxiCTR:
    """Runs of FuxiCTR's models over an export, in their own environment, recorded in a campaign's log."""

    def __init__(self, environment: Path, exported: Exported, campaign: Campaign) -> None:
        self.environment = environment
        self.exported = exported
        self.campaign = campaign

    def measure(self, model: str, settings: Settings, seed: int, tunes: bool = False) -> Record:
        """The record of a run over the rows; over those alone that no figure covers, where it is to tune."""
        facts = self.exported.facts
        key = key_of([str(self.exported.folder), model, settings, seed, tunes, torch.get_num_threads()])
        log = self.campaign.log
        if key in log.records:
            return log.records[key]
        out = self.campaign.folder / f"{key}.parquet"
        end = ["--end-us", str(facts["scored_from_us"])] if tunes else []
        command: list[str | Path] = [self.environment / "bin" / "python", HERE / "fuxictr" / "train.py"]
        command += ["--rows", self.exported.rows, "--facts", self.exported.folder / "rows.json", "--out", out]
        command += ["--zoo", self.environment / "zoo", "--settings", json.dumps(settings), "--seed", str(seed)]
        command += ["--model", model, "--threads", str(torch.get_num_threads()), *end]
        record: Record = {"key": key, "model": f"FuxiCTR {model}", "seed": seed, "settings": settings}
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return log.add(record | {"error": done.stderr.strip().splitlines()[-1]})
        try:
            record |= figures(out, facts["tuned_from_us" if tunes else "scored_from_us"])
        except RuntimeError as error:
            record["error"] = str(error)
        out.unlink()
        return log.add(record | machine())

    def tune(self, model: str, settings: Settings, grid: dict[str, list[Any]]) -> Settings:
        """The best settings of the grid, by NE, with seed 0."""
        points = [dict(zip(grid, values, strict=True)) for values in product(*grid.values())]
        records = [self.measure(model, {**settings, **point}, 0, tunes=True) for point in points]
        chosen: Settings = best(records)["settings"]
        print(f"FuxiCTR {model}: {chosen}", file=sys.stderr, flush=True)
        return chosen


def figures(path: Path, from_us: int) -> Record:
    """Figures of a file of predictions, from a time on, by exfm's own functions.

    Raises:
        RuntimeError: a prediction is not a probability: the model diverged.
    """
    file = pq.read_table(path)
    scored = file["event_time"].cast(pa.int64()).to_numpy() >= from_us
    probability, label = file["prediction"].to_numpy()[scored], file["label"].to_numpy()[scored] > 0
    if not np.isfinite(probability).all():
        raise RuntimeError(f"{path}: predictions are not finite")
    moments = Moments.from_predictions(probability, label)
    names = ("examples", "base_rate", "ne", "log_loss", "calibration")
    costs: Record = json.loads(file.schema.metadata[b"costs"])
    return {name: getattr(moments, name) for name in names} | {"auc": auc(probability, label), **costs}


def main() -> None:
    """Exports, tunes, runs, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, choices=("movielens", "globo"))
    parser.add_argument("--path", required=True, help="the data: as for stream.source.path")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="end the stream with the window in which so many rows are reached")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--environment", type=Path, default=Path(".venv-fuxictr"))
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.out / f"{arguments.data}-fuxictr"
    source = Campaign(HERE / f"{arguments.data}.yaml", (f"stream.source.path={arguments.path}",), folder)
    experiment = shortened(source, arguments.rows, tunes=False).experiment({}, 0)
    span = experiment.source.time_range()
    given = experiment.as_dict()
    sizes = [given["models"]["fm"][key] for key in ("batch_size", "embedding_dim")]
    name = key_of([given["stream"], given["evaluation"], sizes, span.start_us, span.end_us])
    exported = export(experiment, folder / f"rows-{name}")
    ours = Campaign(exported.experiment, (), folder)
    theirs = FuxiCTR(arguments.environment, exported, ours)
    models = yaml.safe_load((HERE / "fuxictr" / "models.yaml").read_text())
    seeds = range(1, arguments.seeds + 1)
    records = run_ours(ours, exported, models["exfm"], seeds)
    for model, section in models["fuxictr"].items():
        chosen = theirs.tune(model, section["settings"], section["grid"])
        records += [theirs.measure(model, chosen, seed) for seed in seeds]
    failed = [f"Failed: {r['model']}, seed {r['seed']}: {r['error']}" for r in records if "error" in r]
    done = [record for record in records if "error" not in record]
    print("\n".join([table(done), "", *failed, *differences(done)]))


def run_ours(campaign: Campaign, exported: Exported, models: dict[str, Settings], seeds: range) -> list[Record]:
    """Tunes and measures each of exfm's models that is installed."""
    early = replace(campaign, end_us=exported.facts["scored_from_us"])
    records: list[Record] = []
    for name, model in models.items():
        lacking = missing(model)
        if lacking:
            print(f"not installed: {name} ({', '.join(lacking)})", file=sys.stderr)
            continue
        chosen = early.tune(name, model)["settings"]
        print(f"exfm {name}: {chosen['optimizer']}", file=sys.stderr, flush=True)
        records += [campaign.measure(f"exfm {name}", chosen, seed) for seed in seeds]
    return records


def differences(records: list[Record]) -> list[str]:
    """How far each pair is apart."""
    aucs: dict[str, list[float]] = {}
    for record in records:
        aucs.setdefault(record["model"], []).append(record["auc"])
    lines = []
    for ours, theirs in PAIRS:
        a, b = aucs.get(f"exfm {ours}"), aucs.get(f"FuxiCTR {theirs}")
        if a and b:
            apart = f"AUC {spread(a)} and {spread(b)}, difference {mean(a) - mean(b):+.4f}"
            lines.append(f"- exfm {ours} and FuxiCTR {theirs}: {apart}")
    return lines


if __name__ == "__main__":
    main()
