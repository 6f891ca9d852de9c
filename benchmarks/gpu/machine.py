"""The device, its versions and its data sheet: `python benchmarks/gpu/machine.py` prints them."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from typing import Any

import torch

# Dense bf16 TFLOP/s with fp32 accumulation of the vendor's data sheets, without sparsity, by a word of the device's
# name; the first that fits counts.
BF16_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "A10": 125.0,
}


def select_device(name: str) -> torch.device:
    """Returns the device of a name; ``auto`` is a GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def data_sheet_tflops(device: torch.device) -> float | None:
    """Returns the bf16 peak of the device's data sheet, in TFLOP/s; None for a device that is not listed."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for word, peak in BF16_TFLOPS.items() if word in name), None)


def environment(device: torch.device) -> dict[str, Any]:
    """Describes the device, its driver and the versions."""
    described: dict[str, Any] = {
        "device": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described |= {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "data_sheet_bf16_tflops": data_sheet_tflops(device),
        }
    return described


def _driver() -> str:
    """Returns the driver's version as ``nvidia-smi`` has it; empty without the command."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    return answer.stdout.strip().split("\n")[0]


if __name__ == "__main__":
    print(json.dumps(environment(select_device("auto")), indent=2))
