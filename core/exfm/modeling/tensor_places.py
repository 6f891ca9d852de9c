"""Places the tensors of a model in the larger tensors of a model that starts from it, by tokens and dense features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from exfm.interfaces.local_shards import StateTensor


@dataclass(frozen=True)
class Places:
    """Places the tokens and the dense features of another model among a model's.

    Attributes:
        tokens: for each token of the other model its number here; -1 where it is not here.
        token_count: the number of tokens here.
        dense, dense_count: the same of dense features.
    """

    tokens: tuple[int, ...]
    token_count: int
    dense: tuple[int, ...]
    dense_count: int

    def along(self, name: str, size: int, room: int) -> Tensor | None:
        """Returns the indices of the other model's values along an axis that has grown from ``size`` to ``room``.

        None where the axis is not made of tokens or dense features, each as wide here as there.
        """
        numbers, count = self.tokens, self.token_count
        if name.startswith("featurizer.dense."):
            numbers, count = self.dense, self.dense_count
        width = size // max(1, len(numbers))
        if size != width * len(numbers) or room != width * count or min(numbers, default=-1) < 0:
            return None
        return (torch.tensor(numbers).unsqueeze(1) * width + torch.arange(width)).flatten()


def fitted(name: str, theirs: Tensor, present: StateTensor, places: Places | None) -> Tensor | None:
    """Returns the other model's tensor in the shape of the model's own; None where it cannot have grown to it.

    A tensor may have grown by further tokens and dense features. A weight multiplies them by zero, so that the model
    computes as before.
    """
    if theirs.shape == present.shape:
        return theirs.to(present.dtype)
    # Tables, which alone may be sharded, have grown already.
    if not isinstance(present, Tensor) or theirs.dim() != present.dim() or places is None:
        return None
    indices: list[Tensor] = []
    for size, room in zip(theirs.shape, present.shape, strict=True):
        index = torch.arange(size) if size == room else places.along(name, size, room)
        if index is None:
            return None
        indices.append(index)
    grown = present.clone()
    grown[indices[0]] = 0.0
    grown[torch.meshgrid(*indices, indexing="ij")] = theirs.to(present.dtype)
    return grown
