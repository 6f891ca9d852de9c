"""Copies of batches beside the computation: `python benchmarks/gpu/pipeline.py`.

A model is fed in four modes: a copy in each step from pageable and from page-locked memory; the copy of the next batch
during a step, as a run does it; and no copies at all, the lower bound. Overlap is the share of the copies' time that
the third hides.

Legend: B examples, N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Self

import torch
from cases import FULL, TINY, Case, Size, backbone_case
from report import Cell, Report, start
from timing import release, wall_seconds
from torch import Tensor

from exfm.data.device_copies import DeviceCopies

COLUMNS = {
    "MB/batch": ".1f",
    "pageable ms": ".2f",
    "pinned ms": ".2f",
    "ahead ms": ".2f",
    "no copies ms": ".2f",
    "overlap %": ".0f",
    "pinned GB/s": ".1f",
}
STEPS = 20
LAYERS = {"short": 1, "long": 4}
"""Layers of the backbone: steps that take about as long as a copy, and longer ones."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of B examples (B, N, D), as a batch that is copied; of ids a real batch has fewer bytes."""

    tokens_BND: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copies the tokens to a device."""
        return replace(self, tokens_BND=self.tokens_BND.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Copies the tokens to page-locked memory."""
        return replace(self, tokens_BND=self.tokens_BND.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Keeps the memory until a stream has passed."""
        self.tokens_BND.record_stream(stream)


def pass_over(case: Case, batches: Callable[[], Iterator[Tokens]]) -> None:
    """Runs a step for each batch."""
    for batch in batches():
        replace(case, inputs=(batch.tokens_BND, {}), leaves=(batch.tokens_BND,)).step()


def measure(size: Size, report: Report) -> dict[str, Cell]:
    """Measures the four modes."""
    device, steps = report.device, 2 if report.tiny else STEPS
    case = backbone_case("wukong", size, device)
    host = [Tokens(torch.randn(size.batch, size.tokens, size.dim)) for _ in range(4)]
    pinned = [batch.pin_memory() for batch in host] if device.type == "cuda" else host
    resident = [batch.to(device) for batch in host]
    sequence = [number % len(host) for number in range(steps)]

    def ahead() -> Iterator[Tokens]:
        copies = DeviceCopies[Tokens](device)
        # A batch is taken by its identity, so each is a new object.
        batches = (Tokens(host[index].tokens_BND) for index in sequence)
        for batch in copies.ahead(batches, lambda batch: batch):
            yield copies.take(batch)

    modes: dict[str, Callable[[], Iterator[Tokens]]] = {
        "pageable": lambda: (host[index].to(device) for index in sequence),
        "pinned": lambda: (pinned[index].to(device, non_blocking=True) for index in sequence),
        "ahead": ahead,
        "no copies": lambda: (resident[index] for index in sequence),
    }
    cells: dict[str, Cell] = {"MB/batch": host[0].tokens_BND.nbytes / 1e6}
    seconds: dict[str, float] = {}
    for mode, batches in modes.items():
        if not report.tiny:
            pass_over(case, batches)
        seconds[mode] = wall_seconds(partial(pass_over, case, batches), device) / steps
        cells[f"{mode} ms"] = seconds[mode] * 1e3
    copy_s = wall_seconds(lambda: [batch.to(device, non_blocking=True) for batch in pinned], device) / len(pinned)
    cells["pinned GB/s"] = host[0].tokens_BND.nbytes / copy_s / 1e9
    exposed_s = seconds["pinned"] - seconds["no copies"]
    if exposed_s > 0:
        cells["overlap %"] = 100 * (seconds["pinned"] - seconds["ahead"]) / exposed_s
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures short and long steps."""
    report = start("pipeline", "Milliseconds of a step with the copy of its batch", COLUMNS, arguments)
    size = TINY if report.tiny else FULL
    for row, layers in LAYERS.items():
        if report.measures(row):
            report.fill(row, partial(measure, replace(size, layers=layers), report), "ahead ms", 20)
            release(report.device)
    report.show()


if __name__ == "__main__":
    main()
