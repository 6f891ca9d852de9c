"""Share of the bf16 peak that every built-in backbone reaches, forward and backward, beside a compiled MLP.

`python benchmarks/gpu/backbones.py [--only wukong dcn_v2]`. FLOPs are torch's count of matrix products and attention.
The peak is measured by plain products of matrices; the data sheet's is noted beside it. The reference is an MLP of
about the same FLOPs per example in four square layers, compiled by torch, and little else than matrix products.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from cases import BACKBONES, FULL, TINY, Case, Size, backbone_case
from machine import data_sheet_tflops
from report import Cell, Report, start
from timing import median_seconds, peak_bytes, release
from torch import nn

from exfm.layers.flops import flop_counter
from exfm.modeling.compiled_blocks import compile_blocks

COLUMNS = {
    "MFLOP/example": ".0f",
    "parameters (M)": ".1f",
    "eager ms": ".2f",
    "eager %": ".1f",
    "blocks ms": ".2f",
    "blocks %": ".1f",
    "compiled ms": ".2f",
    "compiled %": ".1f",
    "reference ms": ".2f",
    "reference %": ".1f",
    "compiled/reference": ".2f",
    "peak GB": ".1f",
}
REFERENCE_LAYERS = 4
COMPILE_S = 40
"""Seconds that a compilation may take at most, as far as known: with fewer left none is begun."""


def matmul_tflops(device: torch.device, edges: Sequence[int]) -> float:
    """Returns the highest rate of square bf16 products, in TFLOP/s."""
    rates: list[float] = []
    for edge in edges:
        left, right = (torch.randn(edge, edge, device=device, dtype=torch.bfloat16) for _ in range(2))
        seconds = median_seconds(partial(torch.mm, left, right), device, repeats=20)
        rates.append(2 * edge**3 / seconds / 1e12)
    return max(rates)


def reference_case(flops: float, batch: int, device: torch.device) -> Case:
    """Builds an MLP of square layers with about so many FLOPs, forward and backward."""
    # Forward and backward are three products of 2 B W^2 a layer; widths are multiples of 64, as kernels like them.
    width = max(1, round(math.sqrt(flops / batch / (6 * REFERENCE_LAYERS)) / 64)) * 64
    layers: list[nn.Module] = []
    for _ in range(REFERENCE_LAYERS):
        layers += [nn.Linear(width, width), nn.ReLU()]
    inputs_BW = torch.randn(batch, width, device=device, requires_grad=True)
    return Case(nn.Sequential(*layers).to(device), batch, (inputs_BW,), (inputs_BW,))


def count(case: Case) -> int:
    """Counts the FLOPs of a step."""
    with flop_counter() as counter:
        case.step()
    return int(counter.get_total_flops())


class Comparison:
    """Measures the backbones.

    Args:
        report: receives the rows.
        size: sizes of inputs and layers.
        backend: torch.compile's backend.
    """

    def __init__(self, report: Report, size: Size, backend: str) -> None:
        self.report, self.size, self.backend = report, size, backend
        edges = (32,) if report.tiny else (4096, 8192, 16384)
        self.peak = matmul_tflops(report.device, edges)
        self.flops: dict[str, int] = {}
        report.note(matmul_tflops=self.peak, data_sheet_tflops=data_sheet_tflops(report.device))

    def eager(self, name: str) -> dict[str, Cell]:
        """Measures a backbone as it is."""
        case = backbone_case(name, self.size, self.report.device)
        self.flops[name] = count(case)
        cells = self._rate("eager", self.flops[name], case)
        peak = peak_bytes(case.step, self.report.device)
        parameters = sum(parameter.numel() for parameter in case.module.parameters())
        return cells | {
            "MFLOP/example": self.flops[name] / case.batch / 1e6,
            "parameters (M)": parameters / 1e6,
            "peak GB": None if peak is None else peak / 1e9,
        }

    def reference(self, name: str) -> dict[str, Cell]:
        """Measures a compiled MLP of the same FLOPs."""
        case = reference_case(self.flops[name], self.size.batch, self.report.device)
        flops = count(case)
        case.module.compile(backend=self.backend, dynamic=False)
        return self._rate("reference", flops, case)

    def blocks(self, name: str) -> dict[str, Cell]:
        """Measures a backbone whose blocks are compiled for batches of any size, as ``compile: true`` does it."""
        torch._dynamo.reset()
        case = backbone_case(name, self.size, self.report.device)
        compile_blocks([case.backbone], self.backend)
        return self._rate("blocks", self.flops[name], case)

    def compiled(self, name: str) -> dict[str, Cell]:
        """Measures a backbone that torch compiles as a whole; graphs break where Python needs lengths of histories."""
        torch._dynamo.reset()
        case = backbone_case(name, self.size, self.report.device)
        case.module.compile(backend=self.backend)
        cells = self._rate("compiled", self.flops[name], case)
        reference = self.report.rows[name].get("reference %")
        share = cells["compiled %"]
        if isinstance(reference, float) and isinstance(share, float):
            cells["compiled/reference"] = share / reference
        return cells

    def _rate(self, mode: str, flops: int, case: Case) -> dict[str, Cell]:
        seconds = median_seconds(case.step, self.report.device)
        return {f"{mode} ms": seconds * 1e3, f"{mode} %": 100 * flops / seconds / 1e12 / self.peak}


def main(arguments: Sequence[str] | None = None, backend: str = "inductor") -> None:
    """Measures all backbones eagerly, then beside their reference, then compiled, as long as there is time."""
    report = start("backbones", "Share of the measured bf16 peak, forward and backward", COLUMNS, arguments)
    comparison = Comparison(report, TINY if report.tiny else FULL, backend)
    names = [name for name in BACKBONES if report.measures(name)]
    modes = (("eager", comparison.eager, 0), ("reference", comparison.reference, 10))
    compiled = (("blocks", comparison.blocks, COMPILE_S), ("compiled", comparison.compiled, COMPILE_S))
    for mode, measure, expected_s in (*modes, *compiled):
        for name in names:
            report.fill(name, partial(measure, name), f"{mode} ms", expected_s)
            release(report.device)
    report.show()


if __name__ == "__main__":
    main()
