"""CUDA graphs for small students: `python benchmarks/gpu/graphs.py`.

A small model's kernels are so short that the GPU waits for Python. A graph of the whole step starts them all at once.
Backbones that read histories are left out, because their shapes change with every batch. Batches have a fixed size, as
graphs need; a run has batches of up to two sizes in a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from cases import BACKBONES, SMALL, TINY, Case, Size, backbone_case, spec
from report import Cell, Report, start
from timing import median_seconds, release

COLUMNS = {
    "eager ms": ".3f",
    "graph ms": ".3f",
    "compiled ms": ".3f",
    "reduce-overhead ms": ".3f",
    "eager/graph": ".2f",
    "eager/compiled": ".2f",
}
BATCHES = (128, 512, 4096)
REPEATS = 50


def measure_modes(name: str, size: Size, report: Report) -> dict[str, Cell]:
    """Measures a step eagerly and, on a GPU, as a CUDA graph."""
    case = backbone_case(name, size, report.device)
    eager_s = median_seconds(case.step, report.device, REPEATS)
    cells: dict[str, Cell] = {"eager ms": eager_s * 1e3}
    if report.device.type == "cuda":
        graph_s = median_seconds(captured(case).replay, report.device, REPEATS)
        cells |= {"graph ms": graph_s * 1e3, "eager/graph": eager_s / graph_s}
    return cells


def captured(case: Case) -> torch.cuda.CUDAGraph:
    """Captures a step, whose gradients are written to the same memory in each replay."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    # On a side stream, and three times, as torch asks for: lazy initialisations must not be captured.
    with torch.cuda.stream(side):
        for _ in range(3):
            case.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    case.clear_gradients()
    with torch.cuda.graph(graph):
        # Without dropping gradients first: those that the capture allocates belong to the graph's memory.
        case.forward().square().mean().backward()  # type: ignore[no-untyped-call]
    return graph


def measure_compiled(name: str, size: Size, report: Report, mode: str) -> dict[str, Cell]:
    """Measures a compiled step; ``reduce-overhead`` is torch's use of CUDA graphs."""
    torch._dynamo.reset()
    case = backbone_case(name, size, report.device)
    case.module.compile(dynamic=False, mode=None if mode == "compiled" else mode)
    seconds = median_seconds(case.step, report.device, REPEATS)
    cells: dict[str, Cell] = {f"{mode} ms": seconds * 1e3}
    eager = report.rows[f"{name}, {size.batch}"].get("eager ms")
    if mode == "compiled" and isinstance(eager, float):
        cells["eager/compiled"] = eager / (seconds * 1e3)
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures steps of small backbones."""
    report = start("graphs", "Milliseconds of a small student's step, bf16", COLUMNS, arguments)
    small = TINY if report.tiny else SMALL
    sizes = [replace(small, batch=batch) for batch in ((small.batch,) if report.tiny else BATCHES)]
    names: list[str] = []
    for name in BACKBONES:
        reads_histories = spec("backbone", name, small.fields()[name]).component.consumes_sequences
        if report.measures(name) and not reads_histories:
            names.append(name)
    for name in names:
        for size in sizes:
            report.fill(f"{name}, {size.batch}", partial(measure_modes, name, size, report), "eager ms", 5)
            release(report.device)
    # Compilations last, because they take most of the time.
    for mode in () if report.tiny else ("compiled", "reduce-overhead"):
        for name in names:
            size = sizes[0]
            call = partial(measure_compiled, name, size, report, mode)
            report.fill(f"{name}, {size.batch}", call, f"{mode} ms", 30)
            release(report.device)
    report.show()


if __name__ == "__main__":
    main()
