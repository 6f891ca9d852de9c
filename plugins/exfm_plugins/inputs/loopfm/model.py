"""LoopFM's sequence of teacher states as an exfm teacher input.

Legend: B examples, L states, K width of a state, M entities, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import TeacherInput
from exfm.layers import mlp
from exfm.transfer import InputSpec, TeacherInputConfig, VectorHistory


class LoopFM(TeacherInput):
    """The L newest states that the teacher had of each entity, newest first, as a token each (arXiv 2605.29280).

    With ``s_l`` the state of ``l`` examples ago and ``p_l`` a learned embedding of its position::

        h_l = MLP(P s_l + p_l)

        mean        token = mean of h_l over the states there are
        attention   token = sum of softmax_l(<q, h_l> / sqrt(D)) h_l

    Where there is no state, or no id, the token is zeros. The paper does not publish its encoder: the MLP, the learned
    query ``q`` of each entity and the positions are ours. Serving looks up L states per entity, which are stored beside
    the model in float16.

    Args:
        config: see ``Config``.
        inputs: the widths of states and tokens.

    Example::

        models:
          fm: {backbone: {name: wukong}, supervision: {states: {user_id: [user_id, history]}}}
          vm: {backbone: {name: dlrm}, inputs: [{name: loopfm, teacher: fm, states: 8}]}
    """

    name: ClassVar[str] = "loopfm"

    class Config(TeacherInputConfig):
        """Fields of `loopfm`; the defaults are ours."""

        states: int = Field(8, gt=0, le=255, description="L: how many of the newest states of each entity are read.")
        pooling: Literal["attention", "mean"] = Field(
            "attention", description="How states become a token: weighted by a learned query, or averaged."
        )

        @property
        def length(self) -> int:
            """L."""
            return self.states

    def __init__(self, config: Config, inputs: InputSpec) -> None:
        super().__init__(config, inputs)
        self.encoders = nn.ModuleDict(
            {
                f"entity_{entity}": _StateEncoder(width, inputs.length, inputs.dim, config.pooling)
                for entity, width in inputs.widths.items()
            }
        )

    def forward(self, histories: Mapping[str, VectorHistory]) -> Tensor:
        """Maps the states (B, L, K) of each entity to a token: (B, M, D)."""
        tokens = [self.encoders[f"entity_{entity}"](histories[entity]) for entity in self.inputs.widths]
        return torch.stack(tokens, dim=1)


class _StateEncoder(nn.Module):
    """Maps the states of an entity to a token (B, D)."""

    def __init__(self, width: int, length: int, dim: int, pooling: Literal["attention", "mean"]) -> None:
        super().__init__()
        self.projection = nn.Linear(width, dim)
        self.position_LD = nn.Parameter(torch.empty(length, dim).normal_(std=0.02))
        self.hidden = mlp([dim, 2 * dim, dim], "silu")
        # Of a single state there is nothing to weigh.
        weighs = pooling == "attention" and length > 1
        self.query_D = nn.Parameter(torch.empty(dim).normal_(std=0.02)) if weighs else None

    def forward(self, history: VectorHistory) -> Tensor:
        state_BLD = self.projection(history.vector_BLK.to(self.projection.weight.dtype)) + self.position_LD
        state_BLD = self.hidden(state_BLD)
        if self.query_D is None:
            weight_BL = history.valid_BL / history.valid_BL.sum(dim=1, keepdim=True).clamp(min=1)
        else:
            score_BL = (state_BLD @ self.query_D) * state_BLD.shape[-1] ** -0.5
            # Finite, where infinity would make the row of an entity without states NaN.
            score_BL = score_BL.masked_fill(~history.valid_BL, torch.finfo(score_BL.dtype).min)
            weight_BL = score_BL.softmax(dim=1) * history.valid_BL
        token_BD: Tensor = (weight_BL.to(state_BLD.dtype).unsqueeze(2) * state_BLD).sum(dim=1)
        return token_BD
