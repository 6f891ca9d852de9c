"""The device of a process."""

from __future__ import annotations

import os
from typing import Literal

import torch
from pydantic import Field

from exfm.interfaces.component import ComponentConfig


class DeviceConfig(ComponentConfig):
    """Fields of every plan that computes on a single device in each process."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes a GPU when there is one."
    )


def select_device(name: str) -> torch.device:
    """Returns the device of a plan's ``device`` field: ``auto`` selects a GPU when there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def select_local_device(name: str) -> torch.device:
    """Returns the device of a process among several: with GPUs, the GPU with the process's local rank."""
    device = select_device(name)
    if device.type == "cpu":
        return device
    local_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    # NCCL uses the current device, which is GPU 0 in every process otherwise.
    torch.cuda.set_device(local_device)
    return local_device
