"""Draws the gain against the size of the FM, from a table of docs/evidence.md, named by its first column.

python benchmarks/transfer/plot_sizes.py docs/evidence.md docs/results/fm_size.png
python benchmarks/transfer/plot_sizes.py docs/evidence.md docs/results/fm_flops.png --column size
"""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEAD = "| {} | MFLOPs per example | FM NE |"


@dataclass(frozen=True)
class Size:
    """A row of the table: MFLOPs per example of the FM, its NE, and the VM's gain in percent with its interval."""

    mflops: float
    fm_ne: float
    gain: float
    low: float
    high: float


def main() -> None:
    """Writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="Markdown with the table")
    parser.add_argument("out", type=Path, help="the image")
    parser.add_argument("--column", default="width", help="the first column of the table")
    arguments = parser.parse_args()
    sizes = read(arguments.page.read_text(encoding="utf-8"), HEAD.format(arguments.column))
    figure, (gain, ne) = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    flops = [size.mflops for size in sizes]
    spread = [[size.gain - size.low for size in sizes], [size.high - size.gain for size in sizes]]
    gain.errorbar(flops, [size.gain for size in sizes], yerr=spread, marker="o", capsize=3)
    gain.set(xlabel="FM, MFLOPs per example", ylabel="NE gain of the VM, %", title="same VM, same serving cost")
    ne.plot(flops, [size.fm_ne for size in sizes], marker="o")
    ne.set(xlabel="FM, MFLOPs per example", ylabel="NE of the FM", title="the FM itself")
    if flops[-1] > 10 * flops[0]:
        gain.set_xscale("log")
        ne.set_xscale("log")
    figure.savefig(arguments.out, dpi=120)


def read(page: str, head: str) -> list[Size]:
    """The rows of the table that begins with a head.

    Raises:
        ValueError: the page has no such table.
    """
    if head not in page:
        raise ValueError(f"no table that begins with {head!r}")
    lines = page[page.index(head) :].split("\n\n")[0].splitlines()[2:]
    found = []
    for line in lines:
        _, mflops, fm_ne, _, _, gain, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        middle, low, high = map(float, re.findall(r"[+-][\d.]+", gain))
        found.append(Size(float(mflops), float(fm_ne), middle, low, high))
    return found


if __name__ == "__main__":
    main()
