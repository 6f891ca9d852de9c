"""Jagged histories against padded ones: time and memory of attention and of every encoder, forward and backward.

`python benchmarks/gpu/sequences.py [--only hstu]`. Attention is compared with torch's causal SDPA, whose time has
padding and its removal. An encoder is compared with itself on histories that are all filled up to the longest,
which is the work of a padded implementation.

Legend: B examples, E events of all examples, T longest history, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from cases import ENCODERS, Case, Size, encoder_case, history, lengths
from report import Cell, Report, start
from timing import median_seconds, peak_bytes, release
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import jagged_attention

COLUMNS = {
    "events": ".0f",
    "jagged ms": ".2f",
    "padded ms": ".2f",
    "times faster": ".2f",
    "jagged MB": ".0f",
    "padded MB": ".0f",
    "times smaller": ".2f",
}
DISTRIBUTIONS = ("exponential", "uniform", "full")
HEADS = 4
# A million padded events each; attention is a small and a large share of the work.
SIZES = (
    Size(batch=4096, tokens=16, dim=128, wide=512, longest=256, layers=2),
    Size(batch=1024, tokens=16, dim=128, wide=512, longest=1024, layers=2),
)
TINY_SIZES = (Size(batch=3, tokens=3, dim=8, wide=8, longest=9, layers=1),)
# Encoders with heads get as many as attention has; the others keep their defaults.
FIELDS: dict[str, dict[str, Any]] = {
    "hstu": {"heads": HEADS, "attention_dim": 32, "linear_dim": 32},
    "pma": {"heads": HEADS},
    "pyramid": {"heads": HEADS},
    "transformer": {"heads": HEADS},
}


class Attention(nn.Module):
    """Causal attention of projected events."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, 3 * dim)

    def forward(self, events: JaggedSequence, _: Tensor) -> Tensor:
        """Maps events (E, D) to events (E, D)."""
        query, key, value = self.project(events.values_ED).chunk(3, dim=1)
        keys = events.with_values(key)
        return jagged_attention(events.with_values(query), keys, value, HEADS, causal=True).values_ED


class PaddedAttention(Attention):
    """The same with every history padded to the longest."""

    def forward(self, events: JaggedSequence, _: Tensor) -> Tensor:
        """Maps events (E, D) to events (E, D)."""
        projected = self.project(events.values_ED)
        b, t = events.batch_size, events.max_length
        real_BT = torch.arange(t, device=projected.device) < events.lengths.unsqueeze(1)
        rows = real_BT.flatten().nonzero().squeeze(1)
        dense = projected.new_zeros(b * t, projected.shape[1]).index_copy(0, rows, projected)
        query, key, value = dense.view(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        # Padding is at the end, where causal queries of real events do not look.
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(b * t, -1).index_select(0, rows)


def attention_case(attention: type[Attention], size: Size, events: JaggedSequence) -> Case:
    """Builds an attention layer."""
    torch.manual_seed(0)
    module = attention(size.dim).to(events.values_ED.device)
    context = events.values_ED.new_zeros(0)
    return Case(module, size.batch, (events, context), (events.values_ED,))


def measured(case: Case, report: Report) -> tuple[float, int | None]:
    """Returns the seconds of a step, and its bytes at the peak."""
    seconds = median_seconds(case.step, report.device)
    return seconds, peak_bytes(case.step, report.device)


def compare(
    jagged: Callable[[JaggedSequence], Case],
    padded: Callable[[JaggedSequence], Case],
    lengths_B: tuple[Tensor, Tensor],
    size: Size,
    report: Report,
) -> Mapping[str, Cell]:
    """Measures both.

    Args:
        lengths_B: lengths of the histories, and those that the padded case gets.
    """
    events = history(lengths_B[0], size, report.device)
    jagged_s, jagged_bytes = measured(jagged(events), report)
    release(report.device)
    padded_s, padded_bytes = measured(padded(history(lengths_B[1], size, report.device)), report)
    cells: dict[str, Cell] = {
        "events": float(lengths_B[0].sum()),
        "jagged ms": jagged_s * 1e3,
        "padded ms": padded_s * 1e3,
        "times faster": padded_s / jagged_s,
    }
    if jagged_bytes and padded_bytes:
        cells |= {
            "jagged MB": jagged_bytes / 1e6,
            "padded MB": padded_bytes / 1e6,
            "times smaller": padded_bytes / jagged_bytes,
        }
    return cells


def measure_size(report: Report, size: Size) -> None:
    """Measures attention and all encoders on histories of a longest length."""
    full_B = lengths("full", size.batch, size.longest)
    for distribution in DISTRIBUTIONS[:1] if report.tiny else DISTRIBUTIONS:
        drawn_B = lengths(distribution, size.batch, size.longest)
        for name in ("attention", *ENCODERS):
            if not report.measures(name):
                continue
            row = f"{name}, {distribution}, {size.longest}"
            if name == "attention":
                # Both get the same histories, because SDPA's case pads them itself.
                jagged, padded = (partial(attention_case, layer, size) for layer in (Attention, PaddedAttention))
                measure = partial(compare, jagged, padded, (drawn_B, drawn_B), size, report)
            else:
                encoder = partial(encoder_case, name, FIELDS.get(name, {}), size)
                measure = partial(compare, encoder, encoder, (drawn_B, full_B), size, report)
            report.fill(row, measure, "jagged ms", 10)
            release(report.device)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all distributions of lengths."""
    report = start("sequences", "Jagged histories against padding, bf16, forward and backward", COLUMNS, arguments)
    for size in TINY_SIZES if report.tiny else SIZES:
        measure_size(report, size)
    report.show()


if __name__ == "__main__":
    main()
