"""Attention over jagged histories against padding to the longest: `python benchmarks/jagged_attention.py`.

Forward and backward pass, float32, a single thread. Lengths are drawn from an exponential distribution of a tenth of
the longest, which a single history has. Both ways start and end with jagged events: padding and its removal are part of
either time. The two results are compared first.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from exfm.components import JaggedSequence
from exfm.layers import jagged_attention

BATCH, DIM, HEADS = 256, 64, 4
GOAL = 3.0


class Case:
    """Histories of a longest length."""

    def __init__(self, longest: int) -> None:
        generator = torch.Generator().manual_seed(0)
        lengths_B = torch.empty(BATCH).exponential_(10 / longest, generator=generator).ceil().clamp(max=longest).long()
        lengths_B[0] = longest
        self.offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths_B.cumsum(0)])
        self.events, self.longest = int(lengths_B.sum()), longest
        self.parts = [torch.randn(self.events, DIM, generator=generator, requires_grad=True) for _ in range(3)]

    def ours(self, causal: bool) -> Tensor:
        """Through ``exfm.layers``."""
        query, key, value_ED = self.parts
        keys = JaggedSequence(key, self.offsets, self.longest)
        return jagged_attention(keys.with_values(query), keys, value_ED, HEADS, causal=causal).values_ED

    def padded(self, causal: bool) -> Tensor:
        """Every history padded to the longest."""
        real_BT = torch.arange(self.longest) < self.offsets.diff().unsqueeze(1)
        rows = real_BT.flatten().nonzero().squeeze(1)
        dense = (part.new_zeros(BATCH * self.longest, DIM).index_copy(0, rows, part) for part in self.parts)
        query, key, value = (part.view(BATCH, self.longest, HEADS, -1).transpose(1, 2) for part in dense)
        mask = None if causal else real_BT[:, None, None]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return mixed.transpose(1, 2).reshape(BATCH * self.longest, DIM).index_select(0, rows)

    def gradients(self, way: Callable[[bool], Tensor], causal: bool) -> tuple[Tensor, ...]:
        """Of the sum of squares of the result."""
        return torch.autograd.grad(way(causal).square().sum(), self.parts)


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def compare(case: Case, causal: bool, repeats: int) -> float:
    """Prints both times and returns their ratio."""
    for one, two in zip(case.gradients(case.ours, causal), case.gradients(case.padded, causal), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)
    pairs = [
        (seconds(lambda: case.gradients(case.ours, causal)), seconds(lambda: case.gradients(case.padded, causal)))
        for _ in range(repeats)
    ]
    our_s, padded_s = (median(pair[i] for pair in pairs) for i in (0, 1))
    print(
        f"{case.longest:>8} {case.events:>8} {'causal' if causal else 'full':>7} {our_s * 1e3:>10.1f}"
        f" {padded_s * 1e3:>10.1f} {padded_s / our_s:>7.1f}",
        flush=True,
    )
    return padded_s / our_s


def main() -> None:
    """Exit status 1 when a ratio is below the goal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--longest", type=int, nargs="+", default=[200, 1000])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{BATCH} examples, width {DIM}, {HEADS} heads, torch {torch.__version__}")
    print(f"{'longest':>8} {'events':>8} {'mask':>7} {'jagged ms':>10} {'padded ms':>10} {'ratio':>7}")
    ratios = []
    for longest in arguments.longest:
        case = Case(longest)
        ratios += [compare(case, causal, arguments.repeats) for causal in (True, False)]
    print(f"lowest ratio {min(ratios):.1f} (at least {GOAL})")
    sys.exit(min(ratios) < GOAL)


if __name__ == "__main__":
    main()
