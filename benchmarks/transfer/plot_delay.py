"""Draws the gain of each student against the age of the snapshot that labels, from the table of docs/evidence.md.

python benchmarks/transfer/plot_delay.py docs/evidence.md docs/results/delay.png
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEAD = "| delay | student | NE |"
HOURS = {"s": 1 / 3600, "h": 1, "d": 24}

Point = tuple[float, float, float, float]
"""Hours, and the gain in percent with the ends of its interval."""


def main() -> None:
    """Writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown with the table")
    parser.add_argument("out", type=Path, help="the image")
    arguments = parser.parse_args()
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for student, points in read(arguments.page.read_text(encoding="utf-8")).items():
        hours, gain, low, high = zip(*points, strict=True)
        below = [middle - end for middle, end in zip(gain, low, strict=True)]
        above = [end - middle for middle, end in zip(gain, high, strict=True)]
        axes.errorbar(hours, gain, yerr=[below, above], marker="o", capsize=3, label=student)
    axes.set(xlabel="delay of the supervision, hours", ylabel="NE gain over the control, %")
    axes.legend()
    figure.savefig(arguments.out, dpi=120)


def read(page: str) -> dict[str, list[Point]]:
    """Reads the points of each student.

    Raises:
        ValueError: the page has no such table.
    """
    if HEAD not in page:
        raise ValueError(f"no table that begins with {HEAD!r}")
    points: dict[str, list[Point]] = defaultdict(list)
    for line in page[page.index(HEAD) :].split("\n\n")[0].splitlines()[2:]:
        delay, student, _, gain, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        middle, low, high = map(float, re.findall(r"[+-][\d.]+", gain))
        points[student].append((float(delay[:-1]) * HOURS[delay[-1]], middle, low, high))
    return points


if __name__ == "__main__":
    main()
