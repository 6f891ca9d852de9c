"""Rates of a device, as they are given or measured on this machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from exfm.config.checks import Arm
from exfm.errors import ConfigError
from exfm.interfaces.layout import Cluster
from exfm.parallel.device import select_device

_SIDE = 2048  # a matrix product this wide reaches the rate of a processor, and takes 17 GFLOP
_COPIED = 2**28  # bytes: more than caches hold
_ATTEMPTS = 3


@dataclass(frozen=True)
class Rates:
    """Holds the rates that a process reaches, and the price of its device.

    Attributes:
        flops: FLOP/s of matrix products, in the precision of the models.
        memory: bytes/s that its memory reads and writes.
        link: bytes/s that it sends to processes of its machine; infinite where it sends nothing.
        network: bytes/s that it sends to other machines; infinite where it sends nothing.
        price: of a device and hour, in any currency; None where it does not matter.
    """

    flops: float
    memory: float
    link: float
    network: float
    price: float | None = None


def complete_rates(
    options: Mapping[str, float | None], price: float | None, cluster: Cluster, arms: Sequence[Arm], measure: bool
) -> Rates | None:
    """Completes the rates of a command line; returns None where it has none.

    Args:
        options: by name without its dashes, in 10^12 FLOP/s or 10^9 bytes/s; None where it is left out.
        price: of a device and hour.
        measure: whether FLOP/s and memory of this machine are measured where they are left out.

    Raises:
        ConfigError: a rate is missing.
    """
    rates = {option: rate for option, rate in options.items() if rate is not None}
    if not rates and not measure:
        return None
    if measure:
        device = select_device("auto")
        low = all(arm.config.precision != "fp32" for arm in arms)
        rates.setdefault("tflops", measure_flops(device, torch.bfloat16 if low else torch.float32) / 1e12)
        rates.setdefault("memory-gbps", measure_memory(device) / 1e9)
    needed = ["tflops", "memory-gbps"]
    if cluster.count > 1:
        needed.append("link-gbps")
    if cluster.count > cluster.per_machine:
        needed.append("network-gbps")
    missing = [option for option in needed if not rates.get(option)]
    if missing:
        measured = "; --measure takes tflops and memory-gbps of this machine" if not measure else ""
        raise ConfigError(f"--{missing[0]}: the time of a step needs it, above 0{measured}")
    link, network = rates.get("link-gbps", math.inf), rates.get("network-gbps", math.inf)
    return Rates(rates["tflops"] * 1e12, rates["memory-gbps"] * 1e9, link * 1e9, network * 1e9, price)


def measure_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measures the FLOP/s of matrix products on this machine."""
    left, right = torch.rand(2, _SIDE, _SIDE, device=device).to(dtype)
    return 2 * _SIDE**3 / _fastest(device, lambda: left @ right)


def measure_memory(device: torch.device) -> float:
    """Measures the bytes/s that this machine's memory reads and writes, by a copy."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED / _fastest(device, lambda: target.copy_(source))


def _fastest(device: torch.device, call: Callable[[], object]) -> float:
    """Returns the seconds of the fastest of a few calls, because other processes disturb the others."""
    seconds: list[float] = []
    call()  # the first call allocates, and starts threads
    for _ in range(_ATTEMPTS):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
