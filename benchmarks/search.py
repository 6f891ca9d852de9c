"""Compares `exfm search` with a grid and with random points on fixed landscapes: the windows that each trains.

A formula stands for the training of a trial: its gain grows with its windows, with noise that shrinks with them. So the
figures are of the search alone, take seconds, and are the same on every machine:

    python benchmarks/search.py
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from statistics import fmean
from typing import Any, Literal

from exfm.config.search_section import SearchedParameter
from exfm.search.study import ArmStudy, StudySettings

WINDOWS = 20
TRIALS = 40
SEEDS = range(10)
NOISE = 0.6  # deviation of the gain of a single window, %

PARAMETERS = {
    "lr": SearchedParameter(low=1e-4, high=1e-1, log=True),
    "weight": SearchedParameter(low=0.1, high=3.0),
    "dim": SearchedParameter(choices=(4, 8, 16, 32)),
}
GRID: dict[str, list[Any]] = {
    "lr": [1e-4, 4e-4, 1.6e-3, 6.3e-3, 2.5e-2, 1e-1],
    "weight": [0.1, 0.7, 1.3, 1.8, 2.4, 3.0],
    "dim": [4, 8, 16, 32],
}
FILE = {"lr": 1e-3, "weight": 1.0, "dim": 8}

Point = Mapping[str, Any]
"""A learning rate, a weight and a width."""

Pruner = Literal["median", "successive_halving", "none"]
PRUNERS: tuple[Pruner, ...] = ("median", "successive_halving")


def bowl(point: Point) -> float:
    """Returns the gain in %, with an optimum between the points of the grid."""
    rate: float = math.log10(point["lr"]) + 1.9
    gain: float = 3.0 - 1.2 * rate**2 - 0.8 * (point["weight"] - 1.55) ** 2 - 0.4 * abs(math.log2(point["dim"] / 16))
    return gain


def ridge(point: Point) -> float:
    """Returns the gain in %, where a larger weight wants a smaller learning rate."""
    rate: float = math.log10(point["lr"]) + 2.2
    gain: float = (
        2.5 - 2.0 * (rate + 0.6 * (point["weight"] - 1.2)) ** 2 - 0.3 * rate**2 - 0.2 * abs(point["dim"] - 8) / 8
    )
    return gain


def cliff(point: Point) -> float:
    """Returns the gain in %, which falls steeply above a learning rate."""
    rate: float = math.log10(point["lr"]) + 2.0
    lost = 6.0 * max(rate - 0.3, 0.0)
    gain: float = (
        2.0 + 0.9 * min(rate, 0.3) - lost - 0.5 * (point["weight"] - 2.1) ** 2 + 0.1 * math.log2(point["dim"] / 4)
    )
    return gain


LANDSCAPES: dict[str, Callable[[Point], float]] = {"bowl": bowl, "ridge": ridge, "cliff": cliff}


def figures(gain: float, noise: random.Random) -> Iterator[float]:
    """Yields the gain over all windows so far, after each window."""
    total = 0.0
    for window in range(1, WINDOWS + 1):
        total += gain * (1 - math.exp(-window / 3)) + noise.gauss(0, NOISE)
        yield total / window


def searched(landscape: Callable[[Point], float], seed: int, pruner: Pruner) -> tuple[Point, int]:
    """Searches; returns the chosen point and the number of windows."""
    noise = random.Random(seed)
    settings = StudySettings(TRIALS, pruner, warmup=2, seed=seed)
    study = ArmStudy("vm", PARAMETERS, FILE, settings)
    study.run(lambda number, values: figures(landscape(values), noise))
    return study.best.values, sum(result.windows for result in study.results)


def best_of(points: list[Point], landscape: Callable[[Point], float], noise: random.Random) -> Point:
    """Trains all points to the end; returns the point of the highest figure."""
    last = [list(figures(landscape(point), noise))[-1] for point in points]
    return points[last.index(max(last))]


def random_points(count: int, seed: int) -> list[Point]:
    """Draws points of the searched ranges."""
    drawn = random.Random(seed)
    points: list[Point] = []
    for _ in range(count):
        rate = 10 ** drawn.uniform(-4, -1)
        points.append({"lr": rate, "weight": drawn.uniform(0.1, 3.0), "dim": drawn.choice(GRID["dim"])})
    return points


def main() -> None:
    """Prints a row for each landscape: true gains of the chosen points, means over seeds."""
    grid: list[Point] = [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]
    headings = ["landscape", "pruner", "file", "grid", "search", "random, same windows"]
    headings += ["grid's windows", "search's windows", "share"]
    print(f"| {' | '.join(headings)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (name, landscape), pruner in itertools.product(LANDSCAPES.items(), PRUNERS):
        by_grid, by_search, by_chance, windows = [], [], [], []
        for seed in SEEDS:
            by_grid.append(landscape(best_of(grid, landscape, random.Random(seed))))
            point, trained = searched(landscape, seed, pruner)
            by_search.append(landscape(point))
            windows.append(trained)
            chance = random_points(round(trained / WINDOWS), seed)
            by_chance.append(landscape(best_of(chance, landscape, random.Random(seed))))
        gains = [landscape(FILE), fmean(by_grid), fmean(by_search), fmean(by_chance)]
        all_windows = len(grid) * WINDOWS
        counts = f"{all_windows:,} | {fmean(windows):.0f} | {fmean(windows) / all_windows:.2f}"
        print(f"| {name} | {pruner} | {' | '.join(f'{gain:+.2f}%' for gain in gains)} | {counts} |")


if __name__ == "__main__":
    main()
