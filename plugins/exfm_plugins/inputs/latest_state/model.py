"""The newest state of an entity as an exfm teacher input.

Legend: B examples, M entities, K width of a state, D width of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from exfm import TeacherInput
from exfm.transfer import InputSpec, TeacherInputConfig, VectorHistory


class LatestState(TeacherInput):
    """The newest state that the teacher had of each entity, through a linear map, as a token each.

    ``token_e = P_e s_e``, with ``s_e`` the teacher's state of entity ``e`` at its last example before. In the
    manner of LoopFM (arXiv 2605.29280), whose sequence of states is `loopfm`. The map has no bias: where there is no
    state, or no id, the token is zeros. Serving looks up a state per entity.

    Args:
        config: see ``Config``.
        inputs: the widths of states and tokens.

    Example::

        models:
          fm: {backbone: {name: wukong}, supervision: {states: {user_id: [user_id, history]}}}
          vm: {backbone: {name: dlrm}, inputs: [{name: latest_state, teacher: fm}]}
    """

    name: ClassVar[str] = "latest_state"

    class Config(TeacherInputConfig):
        """Fields of `latest_state`."""

    def __init__(self, config: Config, inputs: InputSpec) -> None:
        super().__init__(config, inputs)
        self.maps = nn.ModuleDict(
            {f"entity_{entity}": nn.Linear(width, inputs.dim, bias=False) for entity, width in inputs.widths.items()}
        )

    def forward(self, histories: Mapping[str, VectorHistory]) -> Tensor:
        """Maps the newest state (B, K) of each entity to a token: (B, M, D)."""
        maps = [self.maps[f"entity_{entity}"] for entity in self.inputs.widths]
        masks = [histories[entity].valid_BL[:, :1] for entity in self.inputs.widths]
        newest = [histories[entity].vector_BLK[:, 0] for entity in self.inputs.widths]
        newest = [torch.where(mask_B1, state_BK, 0.0) for mask_B1, state_BK in zip(masks, newest, strict=True)]
        return torch.stack([projection(state_BK) for projection, state_BK in zip(maps, newest, strict=True)], dim=1)
