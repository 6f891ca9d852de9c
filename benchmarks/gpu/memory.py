"""Peak memory of a step of every backbone, with and without checkpointing, beside the estimate of `exfm plan`.

`python benchmarks/gpu/memory.py [--only wukong]`. Bytes are those beyond weights and inputs. The estimate is that of
`exfm plan`: activations that the forward pass saves, counted on tensors without memory, and gradients of the weights
and inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from cases import BACKBONES, FULL, TINY, Case, Size, backbone_case
from report import Cell, Report, start
from timing import median_seconds, peak_bytes, release
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from exfm.modeling.recompute import recompute
from exfm.planning.saved_bytes import make_fake, saved_bytes

COLUMNS = {
    "peak MB": ".0f",
    "estimate MB": ".0f",
    "peak/estimate": ".2f",
    "ms": ".2f",
    "recomputed peak MB": ".0f",
    "recomputed estimate MB": ".0f",
    "recomputed peak/estimate": ".2f",
    "recomputed ms": ".2f",
}


def built(name: str, size: Size, device: torch.device, recomputed: bool) -> Case:
    """Builds a backbone, whose blocks are computed again in the backward pass if that is asked for."""
    case = backbone_case(name, size, device)
    if recomputed:
        for block in case.backbone.blocks():
            recompute(block)
    return case


def estimated_bytes(name: str, size: Size, recomputed: bool) -> int:
    """Estimates the bytes of a step: saved activations, and gradients of weights and inputs."""
    case = built(name, size, torch.device("cpu"), recomputed)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    make_fake(case.module, mode)
    tokens_BND, sequences = case.inputs
    with mode:
        fake_BND = torch.empty(tokens_BND.shape, requires_grad=True)
        events = {key: torch.empty(raw.values_ED.shape, requires_grad=True) for key, raw in sequences.items()}
    fakes = {key: raw.with_values(events[key]) for key, raw in sequences.items()}
    leaves: tuple[Tensor, ...] = (fake_BND, *events.values())
    fake = replace(case, inputs=(fake_BND, fakes), leaves=leaves)
    gradients = sum(tensor.nbytes for tensor in (*case.module.parameters(), *leaves))
    return saved_bytes(fake.forward, case.module.parameters()) + gradients


def measure(name: str, size: Size, report: Report, recomputed: bool) -> dict[str, Cell]:
    """Measures a step of a backbone, and estimates it."""
    case = built(name, size, report.device, recomputed)
    prefix = "recomputed " if recomputed else ""
    milliseconds = median_seconds(case.step, report.device) * 1e3
    case.clear_gradients()
    peak = peak_bytes(case.step, report.device)
    estimate = estimated_bytes(name, size, recomputed)
    cells: dict[str, Cell] = {f"{prefix}ms": milliseconds, f"{prefix}estimate MB": estimate / 1e6}
    if peak is not None:
        cells |= {f"{prefix}peak MB": peak / 1e6, f"{prefix}peak/estimate": peak / estimate}
    return cells


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures every backbone, as it is and recomputed."""
    question = "Memory of a step beyond weights and inputs, bf16, beside the estimate of exfm plan"
    report = start("memory", question, COLUMNS, arguments)
    size = TINY if report.tiny else FULL
    for name in BACKBONES:
        for recomputed in (False, True):
            if report.measures(name):
                column = "recomputed peak MB" if recomputed else "peak MB"
                report.fill(name, partial(measure, name, size, report, recomputed), column, 20)
                release(report.device)
    report.show()


if __name__ == "__main__":
    main()
