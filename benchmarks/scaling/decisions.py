"""Whether decisions made on the lite size hold on base: the NE difference that each change makes, at either size.

    python benchmarks/scaling/decisions.py

Changed and unchanged model have the same rows and seeds. Interrupted, it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Mapping, Sequence
from itertools import product
from math import sqrt
from pathlib import Path
from statistics import mean, variance
from typing import Any

import torch
import yaml
from sizes import HERE, STREAM, Campaign, Model, Record, measure, model_of
from tables import header

SIZES = ("lite", "base")
Differences = dict[str, list[float]]


def main() -> None:
    """Measures the missing runs and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default="wukong,gem", help="with commas")
    parser.add_argument("--days", type=int, default=6, help="of the stream")
    parser.add_argument("--seeds", type=int, default=2, help="seeds 1, 2, ...")
    parser.add_argument("--out", type=Path, default=Path("runs/scaling-decisions"))
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error("--seeds: at least 2, or there is no telling a difference from noise")
    torch.set_num_threads(1)
    campaign = Campaign(STREAM, (f"stream.source.days={arguments.days}",), arguments.out)
    decisions = yaml.safe_load((HERE / "decisions.yaml").read_text())
    seeds = range(1, arguments.seeds + 1)
    records: list[Record] = []
    differences: dict[tuple[str, str], Differences] = {}
    for family, size in product(arguments.families.split(","), SIZES):
        model = model_of(family, size)
        plain = measure(campaign, {f"{family}-{size}": model}, seeds)
        records += plain
        for name, change in decisions[family].items():
            other = measure(campaign, {f"{family}-{size}, {name}": changed(model, change)}, seeds)
            records += other
            of_seeds = [b["ne"] - a["ne"] for a, b in zip(plain, other, strict=True)]
            differences.setdefault((family, name), {})[size] = of_seeds
    print(table(records, differences))


def changed(model: Model, change: Mapping[str, Any]) -> Model:
    """The model with new values at the paths of a change."""
    result = copy.deepcopy(model)
    for path, value in change.items():
        *way, last = path.split(".")
        node = result
        for part in way:
            node = node[part]
        node[last] = value
    return result


def table(records: Sequence[Record], differences: Mapping[tuple[str, str], Differences]) -> str:
    """A row per decision, under the rows that the figures rest on."""
    errors = {size: standard_error([of_sizes[size] for of_sizes in differences.values()]) for size in SIZES}
    noise = ", ".join(f"{error:.4f} at {size}" for size, error in errors.items())
    columns = ["family", "change", "lite: NE difference (each seed)", "base: NE difference (each seed)", "verdict"]
    lines = [header(records), "", f"Standard error of a mean difference, pooled: {noise}.", ""]
    lines += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    for (family, name), of_sizes in differences.items():
        cells = [
            f"{mean(of_sizes[size]):+.4f} ({', '.join(f'{each:+.4f}' for each in of_sizes[size])})" for size in SIZES
        ]
        lines.append(f"| {' | '.join([family, name, *cells, verdict(of_sizes, errors)])} |")
    return "\n".join(lines)


def standard_error(of_decisions: Sequence[Sequence[float]]) -> float:
    """Of a mean over seeds, from the spread between seeds pooled over decisions: two seeds alone say too little."""
    return sqrt(mean(variance(of_seeds) for of_seeds in of_decisions) / len(of_decisions[0]))


def verdict(of_sizes: Differences, errors: Mapping[str, float]) -> str:
    """Compares the signs of differences beyond two standard errors."""
    lite, base = (0 if abs(mean(of_sizes[size])) < 2 * errors[size] else mean(of_sizes[size]) for size in SIZES)
    if not lite:
        return "open: no clear difference at lite"
    if not base:
        return "not seen at base"
    return "held" if lite * base > 0 else "reversed"


if __name__ == "__main__":
    main()
