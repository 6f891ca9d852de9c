"""The teacher's embedding of the example as an exfm teacher input.

Legend: B examples, K width of an embedding, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from exfm import TeacherInput
from exfm.transfer import EXAMPLE, InputSpec, TeacherInputConfig, VectorHistory


class PairEmbedding(TeacherInput):
    """The teacher's embedding of the example, user and candidate together, through a linear map, as a token.

    ``token = P norm(e) + b`` with ``e`` the embedding as the teacher stores it (`supervision.embedding`), from its
    forward pass before it has trained on the example, and ``norm`` a LayerNorm. Where the teacher has no embedding of
    the example, the token is a learned vector.

    Target-aware embeddings of a foundation model as features of its experts are published (arXiv 2508.02929,
    arXiv 2604.12110); this projection and the learned token of a miss are ours. Serving needs the teacher's forward
    pass of each pair ahead of the request, and looks K numbers up per candidate. A token of D numbers carries less than
    an embedding of K: `embedding_dim` of the student bounds it.

    Args:
        config: see ``Config``.
        inputs: the widths of the embedding and the token.

    Example::

        models:
          fm: {backbone: {name: wukong}, supervision: {embedding: float16}}
          vm: {backbone: {name: dlrm}, inputs: [{name: pair_embedding, teacher: fm}]}
    """

    name: ClassVar[str] = "pair_embedding"
    reads: ClassVar[Literal["states", "embedding"]] = "embedding"

    class Config(TeacherInputConfig):
        """Fields of `pair_embedding`."""

    def __init__(self, config: Config, inputs: InputSpec) -> None:
        super().__init__(config, inputs)
        width = inputs.widths[EXAMPLE]
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, inputs.dim)
        self.miss_D = nn.Parameter(torch.empty(inputs.dim).normal_(std=0.02))

    def forward(self, histories: Mapping[str, VectorHistory]) -> Tensor:
        """Maps the embedding (B, K) of each example to a token: (B, 1, D)."""
        history = histories[EXAMPLE]
        embedding_BK = torch.where(history.valid_BL, history.vector_BLK[:, 0], 0.0)
        token_BD = self.projection(self.norm(embedding_BK))
        return torch.where(history.valid_BL, token_BD, self.miss_D.to(token_BD.dtype)).unsqueeze(1)
