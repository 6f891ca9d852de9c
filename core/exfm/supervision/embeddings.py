"""Compresses a teacher's representation for storage: float16, or int8 with a scale per row.

Legend: S rows, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

EmbeddingFormat = Literal["none", "float16", "int8"]


@dataclass(frozen=True)
class EmbeddingShape:
    """Describes stored embeddings: the format (not ``none``) and the width E."""

    format: EmbeddingFormat
    dim: int


@dataclass(frozen=True)
class CompactEmbedding:
    """Holds compressed embeddings of S rows. Students learn from decoded embeddings in the teacher's process too.

    Attributes:
        values_SE: float16, or int8.
        scale_S: float32, value of an int8 of 1; None for float16.
    """

    values_SE: Tensor
    scale_S: Tensor | None

    @classmethod
    def empty(cls, shape: EmbeddingShape) -> CompactEmbedding:
        """Returns embeddings of 0 rows."""
        return cls.from_values(torch.zeros(0, shape.dim), shape.format)

    @classmethod
    def from_values(cls, embedding_SE: Tensor, form: EmbeddingFormat) -> CompactEmbedding:
        """Rounds embeddings to the format: float16 clipped to its range, int8 symmetric, with a row's largest at 127.

        A row that is not finite decodes to values that are not finite.
        """
        assert form != "none"
        values_SE = embedding_SE.detach().float().cpu()
        if form == "float16":
            return cls(to_float16(values_SE), None)
        # 127 and not 128, so that the range is symmetric.
        scale_S = values_SE.abs().amax(dim=1) / 127
        # The smallest normal number, because a row of zeros has a scale of 0.
        steps_SE = values_SE / scale_S.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(1)
        return cls(steps_SE.nan_to_num(0.0).round().clamp(-127, 127).to(torch.int8), scale_S)

    @classmethod
    def cat(cls, embeddings: Sequence[CompactEmbedding]) -> CompactEmbedding:
        """Concatenates at least 1 set of embeddings of equal shape."""
        values_SE = torch.cat([embedding.values_SE for embedding in embeddings])
        scales = [embedding.scale_S for embedding in embeddings if embedding.scale_S is not None]
        return cls(values_SE, torch.cat(scales) if scales else None)

    def take(self, rows: Tensor | slice) -> CompactEmbedding:
        """Selects rows."""
        return CompactEmbedding(self.values_SE[rows], None if self.scale_S is None else self.scale_S[rows])

    def numbers(self) -> list[Tensor]:
        """Returns the floating-point tensors, which are the only tensors that can hold NaN or infinities."""
        return [self.values_SE if self.scale_S is None else self.scale_S]

    def decode(self) -> Tensor:
        """Returns the embeddings (S, E), float32, in new memory."""
        values_SE = self.values_SE.float()
        # In place, because ``float`` has copied the int8 values.
        return values_SE if self.scale_S is None else values_SE.mul_(self.scale_S.unsqueeze(1))


def to_float16(values: Tensor) -> Tensor:
    """Rounds values to float16 and clips them to its range, on the CPU."""
    limit = torch.finfo(torch.float16).max
    return values.detach().float().cpu().clamp(-limit, limit).half()
