"""Products in fp8 against bf16: `python benchmarks/gpu/fp8.py`.

First a bare product, `torch._scaled_mm` of tensors that are fp8 already against bf16. Then a linear layer as
`precision: fp8` trains it, forward and backward, with everything that rounding costs, eagerly and compiled.

Legend: M rows, K input columns, O output columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from report import Cell, Report, start
from timing import median_seconds, release
from torch import Tensor, nn

from exfm.layers.fp8 import fp8_problem, use_fp8

COLUMNS = {
    "bf16 ms": ".3f",
    "fp8 ms": ".3f",
    "fp8 TFLOP/s": ".0f",
    "times faster": ".2f",
    "layer bf16 ms": ".3f",
    "layer fp8 ms": ".3f",
    "layer times faster": ".2f",
    "compiled bf16 ms": ".3f",
    "compiled fp8 ms": ".3f",
    "compiled times faster": ".2f",
    "layer error %": ".1f",
}
# Rows of a batch of 4,096 examples, and of as many tokens; widths from a student's to a foundation model's.
SHAPES = ((4096, 1024, 1024), (4096, 4096, 4096), (4096, 8192, 8192), (131072, 256, 1024), (131072, 1024, 4096))
TINY_SHAPES = ((24, 32, 48),)


def bare(shape: tuple[int, int, int], report: Report) -> dict[str, Cell]:
    """Measures a product without rounding."""
    rows, inputs, outputs = shape
    device = report.device
    left_MK = torch.randn(rows, inputs, device=device, dtype=torch.bfloat16)
    right_KO = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16).t()
    left8_MK, right8_KO = left_MK.to(torch.float8_e4m3fn), right_KO.to(torch.float8_e4m3fn)
    scale = torch.ones((), device=device)
    bf16_s = median_seconds(lambda: left_MK @ right_KO, device, 20)
    fp8_s = median_seconds(
        lambda: torch._scaled_mm(left8_MK, right8_KO, scale_a=scale, scale_b=scale, out_dtype=torch.bfloat16),
        device,
        20,
    )
    return {
        "bf16 ms": bf16_s * 1e3,
        "fp8 ms": fp8_s * 1e3,
        "fp8 TFLOP/s": 2 * rows * inputs * outputs / fp8_s / 1e12,
        "times faster": bf16_s / fp8_s,
    }


def layers(shape: tuple[int, int, int], report: Report) -> tuple[nn.Linear, nn.Linear, Tensor]:
    """Builds two layers of the same weights, the second in fp8, and an input."""
    rows, inputs, outputs = shape
    torch.manual_seed(0)
    plain = nn.Linear(inputs, outputs).to(report.device)
    rounded = nn.Linear(inputs, outputs).to(report.device)
    rounded.load_state_dict(plain.state_dict())
    assert use_fp8(rounded) == 1
    return plain, rounded, torch.randn(rows, inputs, device=report.device, requires_grad=True)


def step(layer: nn.Module, values_MK: Tensor, gradient_MO: Tensor) -> Callable[[], Tensor]:
    """Returns a forward and backward pass, whose result is the output."""

    def run() -> Tensor:
        layer.zero_grad()
        values_MK.grad = None
        with torch.autocast(values_MK.device.type, torch.bfloat16):
            output_MO: Tensor = layer(values_MK)
        output_MO.backward(gradient_MO)  # type: ignore[no-untyped-call]
        return output_MO.detach()

    return run


def trained(shape: tuple[int, int, int], report: Report, prefix: str, backend: str | None = None) -> dict[str, Cell]:
    """Measures a layer, forward and backward."""
    plain, rounded, values_MK = layers(shape, report)
    if backend is not None:
        torch._dynamo.reset()
        plain.compile(backend=backend)
        rounded.compile(backend=backend)
    gradient_MO = torch.randn(shape[0], shape[2], device=report.device, dtype=torch.bfloat16)
    plain_step, rounded_step = step(plain, values_MK, gradient_MO), step(rounded, values_MK, gradient_MO)
    exact, result = plain_step().float(), rounded_step().float()
    bf16_s, fp8_s = (median_seconds(call, report.device, 20) for call in (plain_step, rounded_step))
    return {
        f"{prefix} bf16 ms": bf16_s * 1e3,
        f"{prefix} fp8 ms": fp8_s * 1e3,
        f"{prefix} times faster": bf16_s / fp8_s,
        f"{prefix} error %": float(100 * (result - exact).norm() / exact.norm()),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures shapes from students' to foundation models'."""
    report = start("fp8", "Products in fp8 against bf16", COLUMNS, arguments)
    problem = fp8_problem(report.device)
    report.note(problem=problem or None)
    for shape in TINY_SHAPES if report.tiny else SHAPES if not problem else ():
        row = " x ".join(map(str, shape))
        if report.measures(row):
            report.fill(row, partial(bare, shape, report), "fp8 ms")
            report.fill(row, partial(trained, shape, report, "layer"), "layer fp8 ms")
            if not report.tiny:
                compiled = partial(trained, shape, report, "compiled", "inductor")
                report.fill(row, compiled, "compiled fp8 ms", 30)
            release(report.device)
    report.show()


if __name__ == "__main__":
    main()
