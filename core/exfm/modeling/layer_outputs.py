"""Reads the outputs of a backbone's layers while it computes its representation.

Legend: B examples, L width of all layers that are read, together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exfm.errors import suggestion
from exfm.interfaces.backbone import Backbone

REPRESENTATION = "representation"
"""Names the backbone's output where states are read from it."""


@dataclass
class _Memory:
    """Holds memory for the outputs of a layer: ``filled`` rows are written already, by earlier micro-batches."""

    rows_BR: Tensor
    filled: int = 0


_memories: ContextVar[Mapping[str, _Memory] | None] = ContextVar("memories", default=None)
"""Holds the memory of this thread's forward pass, by layer: threads that share a batch have a context each."""


class LayerOutputs:
    """Has some layers of a backbone write their outputs into memory of the caller.

    Writing beside the graph, and not returning another result, leaves the model's own computation bit by bit as it is.

    Args:
        backbone: the backbone whose layers are read.
        keys: the names of these layers in ``layer_dims``, each with a key of the model's section that names it.

    Attributes:
        widths: the width of each layer that is read, by name.

    Raises:
        ValueError: the backbone names no such layer.
    """

    def __init__(self, backbone: Backbone, keys: Mapping[str, str]) -> None:
        offered = backbone.layer_dims
        for name, key in keys.items():
            if name not in offered:
                listed = suggestion(name, [REPRESENTATION, *offered])
                raise ValueError(f"{key}: the backbone {backbone.name} names no layer {name!r}.{listed}")
            backbone.get_submodule(name).register_forward_hook(partial(_write, name))
        self.widths = {name: offered[name] for name in keys}

    def split(self, layers_BL: Tensor) -> dict[str, Tensor]:
        """Returns each layer's columns by name."""
        columns = torch.split(layers_BL, list(self.widths.values()), dim=1)
        return dict(zip(self.widths, columns, strict=True))

    @property
    def width(self) -> int:
        """Returns L."""
        return sum(self.widths.values())

    @contextmanager
    def into(self, layers_BL: Tensor) -> Iterator[None]:
        """Has the forward passes of this thread write into ``layers_BL``, micro-batch after micro-batch."""
        token = _memories.set({name: _Memory(rows_BR) for name, rows_BR in self.split(layers_BL).items()})
        try:
            yield
        finally:
            _memories.reset(token)


def _write(name: str, layer: nn.Module, inputs: Any, output: Any) -> None:
    """Copies a layer's output into the memory of this thread; a forward hook."""
    memories = _memories.get()
    if memories is not None:
        memory = memories[name]
        first = output[0] if isinstance(output, tuple) else output
        end = memory.filled + first.shape[0]
        # In place and detached: the model's graph stays as it is without the hook.
        memory.rows_BR[memory.filled : end].copy_(first.detach().flatten(1))
        memory.filled = end
