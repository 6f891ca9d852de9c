"""Quality against FLOPs: five sizes of three backbones on a simulated stream whose Bayes NE is known.

    python benchmarks/scaling/run.py --tune     # learning rates, on the part of the stream that no figure covers
    python benchmarks/scaling/run.py            # the curve: a table, its fit and a plot

A single pass; every example is predicted before it is trained on. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from curve import Point, fit, plot
from sizes import FAMILIES, ROOT, SIZES, STREAM, Campaign, Model, Record, measure, model_of
from streams import first_scored, rows_by_window
from tables import header, spread

from exfm.evaluation.metrics import Moments

DENSE_RATES, TABLE_RATES = (0.0005, 0.001, 0.002), (0.25, 0.5)


def main() -> None:
    """Tunes, or measures and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", action="store_true", help="compare learning rates instead")
    parser.add_argument("--families", default=",".join(FAMILIES), help="with commas")
    parser.add_argument("--sizes", default=",".join(SIZES), help="with commas")
    parser.add_argument("--seeds", default="1", help="how many, from seed 1 on; with commas, a number for each size")
    parser.add_argument("--days", type=int, default=12, help="of the stream, 10,000 rows each")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs" / "results" / "scaling.png")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    campaign = Campaign(STREAM, (f"stream.source.days={arguments.days}",), arguments.out)
    families, sizes = arguments.families.split(","), arguments.sizes.split(",")
    models = {size: {f"{family}-{size}": model_of(family, size) for family in families} for size in sizes}
    if arguments.tune:
        print(tune(campaign, {name: model for of_size in models.values() for name, model in of_size.items()}))
        return
    counts = [int(count) for count in arguments.seeds.split(",")]
    if len(counts) not in (1, len(sizes)):
        parser.error(f"--seeds: {len(counts)} numbers for {len(sizes)} sizes; give one, or one for each size")
    records: list[Record] = []
    for size, count in zip(sizes, counts * len(sizes), strict=False):
        records += measure(campaign, models[size], range(1, count + 1))
    bayes = bayes_ne(campaign)
    print(table(records, bayes))
    points = points_of(records, bayes)
    if len(sizes) > 2:
        laws = {family: fit(of_family) for family, of_family in points.items()}
        print("\n".join(f"- {family}: {law}" for family, law in laws.items()))
        plot(points, laws, arguments.plot)


def tune(campaign: Campaign, models: Mapping[str, Model]) -> str:
    """NE of every pair of learning rates before the scored part, seed 0, as a table."""
    experiment = campaign.experiment({}, 0)
    early = replace(campaign, end_us=first_scored(rows_by_window(experiment), experiment.config.evaluation.skip))
    lines = [f"| dense / tables | {' | '.join(models)} | mean |", "|" + "---|" * (len(models) + 2)]
    for dense, tables in product(DENSE_RATES, TABLE_RATES):
        rates = {"optimizer": {"dense": {"lr": dense}, "tables": {"lr": tables}}}
        with_rates = {name: model | rates for name, model in models.items()}
        scores = [record["ne"] for record in measure(early, with_rates, [0])]
        cells = [f"{dense:g} / {tables:g}", *(f"{ne:.4f}" for ne in (*scores, mean(scores)))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def bayes_ne(campaign: Campaign) -> float:
    """NE of the true probabilities on the scored part of the stream."""
    experiment = campaign.experiment({}, 0)
    windows = rows_by_window(experiment)
    scored_us = first_scored(windows, experiment.config.evaluation.skip)
    batches = [
        batch for window, _ in windows if window.start_us >= scored_us for batch in experiment.source.read(window)
    ]
    label = experiment.schema.labels[0]
    oracle, clicked = (
        np.concatenate([batch[column].to_numpy() for batch in batches]) for column in (label.oracle, label.name)
    )
    ne = Moments.from_predictions(oracle, clicked > 0).ne
    assert ne is not None
    return ne


def points_of(records: Sequence[Record], bayes: float) -> dict[str, list[Point]]:
    """By family: FLOPs and distance to the Bayes NE of every run, in the order of FLOPs."""
    points: dict[str, list[Point]] = {}
    for record in records:
        point = Point(record["flops_per_example"], record["ne"] - bayes)
        points.setdefault(record["model"].partition("-")[0], []).append(point)
    return {family: sorted(of_family) for family, of_family in points.items()}


def table(records: Sequence[Record], bayes: float) -> str:
    """A row per model, under the rows that the figures rest on."""
    columns = ["model", "dense parameters", "MFLOPs per example", "NE", "above Bayes", "seeds", "train examples/s"]
    lines = [
        header(records),
        "",
        f"Bayes NE {bayes:.4f}.",
        "",
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
    ]
    by_model: dict[str, list[Record]] = {}
    for record in records:
        by_model.setdefault(record["model"], []).append(record)
    for name, of_model in sorted(by_model.items(), key=lambda item: _place(item[0])):
        first, scores = of_model[0], [record["ne"] for record in of_model]
        cells = [
            name,
            f"{first['parameters']['dense']:,}",
            f"{first['flops_per_example'] / 1e6:.2f}",
            spread(scores),
            f"{mean(scores) - bayes:.4f}",
            ", ".join(str(record["seed"]) for record in of_model),
            f"{mean(record['train_examples_per_second'] for record in of_model):,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _place(name: str) -> tuple[int, int]:
    family, _, size = name.partition("-")
    return FAMILIES.index(family), SIZES.index(size)


if __name__ == "__main__":
    main()
