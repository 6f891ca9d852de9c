"""Quality of backbones and encoders in one pipeline: a single pass, every example predicted before it is trained on.

    python benchmarks/quality/run.py --data movielens --path FOLDER --tune
    python benchmarks/quality/run.py --data movielens --path FOLDER --seeds 3

``--tune`` picks each model's learning rates on the part of the stream that the figures skip, or with ``--whole`` on a
stream that no figure covers, with seed 0 or with more of them, and writes them to tuned-DATA.yaml; the campaign of
seeds 1, 2, ... uses them. Interrupted, either goes on where it was.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from campaign import START, Campaign, Rates, Record, missing
from streams import end_of_rows, first_scored, rows_by_window
from tables import table

HERE = Path(__file__).parent
Models = dict[str, dict[str, Any]]


def main() -> None:
    """Tunes or measures, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, choices=("movielens", "globo"))
    parser.add_argument("--path", required=True, help="the data: as for stream.source.path")
    parser.add_argument("--models", default="", help="names of models.yaml, with commas; all of them by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, help="end the stream with the window in which so many rows are reached")
    parser.add_argument("--tune", action="store_true", help="choose learning rates instead")
    parser.add_argument("--points", type=int, help="with --tune: pairs of learning rates to try for a model at most")
    parser.add_argument("--whole", action="store_true", help="with --tune: on all of --path, which no figure covers")
    parser.add_argument("--tune-seeds", type=int, default=1, help="with --tune: by the mean NE over seeds 0, 1, ...")
    parser.add_argument("--start", type=_rates, default=START, help="with --tune: the first pair, as 0.002/0.2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/quality"))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    models, absent = installed(arguments.models, parser)
    base, tuned = HERE / f"{arguments.data}.yaml", HERE / f"tuned-{arguments.data}.yaml"
    campaign = Campaign(base, (f"stream.source.path={arguments.path}",), arguments.out / arguments.data)
    campaign = shortened(campaign, arguments.rows, arguments.tune and not arguments.whole)
    if arguments.tune:
        tune(campaign, models, tuned, arguments.points, arguments.start, range(arguments.tune_seeds))
    else:
        report = measure(campaign, models, tuned, arguments.seeds)
        lines = [f"Not installed: {'; '.join(absent)}."] if absent else []
        print("\n".join([report, "", *lines]))


def installed(names: str, parser: argparse.ArgumentParser) -> tuple[Models, list[str]]:
    """The chosen models that can be run, and the packages that the others lack."""
    models: Models = yaml.safe_load((HERE / "models.yaml").read_text())
    chosen = names.split(",") if names else list(models)
    unknown = [name for name in chosen if name not in models]
    if unknown:
        parser.error(f"--models: there is no {unknown[0]!r} in models.yaml; there are {', '.join(models)}")
    lacking = {name: missing(models[name]) for name in chosen}
    absent = [f"{name} ({', '.join(parts)})" for name, parts in lacking.items() if parts]
    for one in absent:
        print(f"not installed: {one}", file=sys.stderr)
    return {name: models[name] for name in chosen if not lacking[name]}, absent


def shortened(campaign: Campaign, rows: int | None, tunes: bool) -> Campaign:
    """The campaign on as much of the stream as it may see: to tune, only the part that the figures leave out."""
    if rows is None and not tunes:
        return campaign
    experiment = campaign.experiment({}, 0)
    windows = rows_by_window(experiment)
    end_us = end_of_rows(windows, sum(count for _, count in windows) if rows is None else rows)
    if tunes:
        seen = [(window, count) for window, count in windows if window.end_us <= end_us]
        end_us = first_scored(seen, experiment.config.evaluation.skip)
    return replace(campaign, end_us=end_us)


def _rates(given: str) -> Rates:
    dense, tables = map(float, given.split("/"))
    return dense, tables


def tune(
    campaign: Campaign, models: Models, tuned: Path, points: int | None, start: Rates, seeds: Sequence[int]
) -> None:
    """Writes each model's best learning rates, as soon as they are known."""
    for name, model in models.items():
        record = campaign.tune(name, model, points, start, seeds)
        chosen = yaml.safe_load(tuned.read_text()) if tuned.exists() else {}
        kept = {key: record[key] for key in ("ne", "examples", "base_rate")} | {"seeds": len(seeds)}
        chosen[name] = {"optimizer": record["settings"]["optimizer"], "on": kept}
        lines = [
            "# Learning rates that run.py chose on the part of the stream that no figure covers, and NE there.",
            f"# The last command: python {shlex.join(_elsewhere(sys.argv))}",
            yaml.safe_dump(chosen, sort_keys=True, default_flow_style=None, width=120),
        ]
        tuned.write_text("\n".join(lines))
        print(f"{name}: {chosen[name]}", flush=True)


def _elsewhere(arguments: list[str]) -> list[str]:
    """A command line without the places of this machine where data and records are."""
    before = ["", *arguments]
    kept = [pair for pair in zip(arguments, before, strict=False) if "--out" not in pair]
    return ["FOLDER" if last == "--path" else given for given, last in kept]


def measure(campaign: Campaign, models: Models, tuned: Path, seeds: int) -> str:
    """Runs the missing runs and returns the table."""
    rates = yaml.safe_load(tuned.read_text()) if tuned.exists() else {}
    records: list[Record] = []
    for seed in range(1, seeds + 1):
        for name, model in models.items():
            chosen = {"optimizer": rates[name]["optimizer"]} if name in rates else {}
            record = campaign.measure(name, model | chosen, seed)
            told = record.get("error") or f"NE {record['ne']:.4f}, AUC {record['auc']:.4f}, {record['seconds']:.0f} s"
            print(f"{name}, seed {seed}: {told}", file=sys.stderr, flush=True)
            records.append(record)
    done = [record for record in records if "error" not in record]
    failed = [f"\nFailed: {r['model']}, seed {r['seed']}: {r['error']}" for r in records if "error" in r]
    return "\n".join([table(done) if done else "No run succeeded.", *failed])


if __name__ == "__main__":
    main()
