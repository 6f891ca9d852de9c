"""The machine's limits: the rate of matrix products and the bandwidth of memory, as one line of JSON."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

import torch

_SIDE = 2048
_COPIED_MIB = 512


def best_seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The shortest of several calls, after a first that does not count."""
    call()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def matmul_gflops(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product."""
    left, right = (torch.randn(_SIDE, _SIDE).to(dtype) for _ in range(2))
    return 2 * _SIDE**3 / best_seconds(lambda: left @ right) / 1e9


def bandwidth_gbps() -> float:
    """GB/s of a copy, read and written bytes together."""
    source = torch.ones(_COPIED_MIB << 18)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source)) / 1e9


def fast_bf16() -> bool:
    """Whether the processor has instructions for bfloat16; without them it is emulated, far slower than fp32."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def measure() -> dict[str, float | bool]:
    """All figures; bf16 only where the processor has it."""
    figures: dict[str, float | bool] = {"fp32_gflops": matmul_gflops(torch.float32), "bandwidth_gbps": bandwidth_gbps()}
    figures["has_bf16"] = fast_bf16()
    if figures["has_bf16"]:
        figures["bf16_gflops"] = matmul_gflops(torch.bfloat16)
    return figures


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    torch.set_num_threads(parser.parse_args().threads)
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()
