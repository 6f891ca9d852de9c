"""The blocks of a network: the modules that are recomputed, sharded and compiled separately."""

from __future__ import annotations

from torch import nn


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """Lists the elements of every ``nn.ModuleList`` that is a direct child of a module, in order."""
    blocks: list[nn.Module] = []
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            blocks += child
    return blocks
