"""Runs a function in several processes on this machine, as torchrun does."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


def launch(function: Callable[..., object], *arguments: Any, processes: int, restarts: int = 0) -> None:
    """Calls a function in so many processes at once, and waits for all of them.

    They are forked from this process, because importing torch takes longer than most tests. On a machine with GPUs
    they are spawned: CUDA does not work in a process that is forked from a process that has looked for GPUs.

    Args:
        function: of a module, so that a spawned process finds it.
        restarts: how often all processes are started again when any has failed.
    """
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=restarts,
        start_method="spawn" if torch.cuda.is_available() else "fork",
    )
    elastic_launch(config, function)(*arguments)
