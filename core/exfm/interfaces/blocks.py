"""The blocks of a network: what is recomputed, sharded and compiled one by one."""

from __future__ import annotations

from torch import nn


def listed_blocks(module: nn.Module) -> list[nn.Module]:
    """The elements of every ``nn.ModuleList`` that is a direct child of a module, in order."""
    return [block for child in module.children() if isinstance(child, nn.ModuleList) for block in child]
