"""Compiles the blocks of networks by torch.compile; torch is all that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from exfm.interfaces.backbone import Backbone
from exfm.interfaces.sequence_encoder import SequenceEncoder

Backend = str | Callable[..., Any]
"""A backend of torch.compile, by name or as a function."""


def compile_blocks(networks: Iterable[Backbone | SequenceEncoder], backend: Backend = "inductor") -> None:
    """Compiles the blocks of networks, in place, when they are first called; a network without blocks is a block.

    Blocks and not whole networks, because equal blocks share a graph, and FSDP2's hooks run between blocks. Numbers of
    examples and events are dynamic, so that a batch of another size compiles nothing. Parameters keep their names.
    Where a block needs the lengths of histories in Python, its graph breaks, and that operation runs as it is.
    """
    for network in networks:
        for block in network.blocks() or [network]:
            block.forward = torch.compile(block.forward, dynamic=True, backend=backend)
