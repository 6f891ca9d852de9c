"""Two towers as an exfm backbone.

Legend: B examples, N tokens, U tokens of the user, I tokens of the item, D width of a token, R width of a tower's
output and of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, JaggedSequence, suggestion
from exfm.layers import ActivationName, RMSNorm, mlp


class TwoTower(Backbone):
    """A vector of the user, a vector of the item, and their elementwise product: the shape of retrieval.

    ::

        u = MLP_u([x_j for j not in item])      v = MLP_v([x_i for i in item])      representation = u * v

    With a linear head (``head_hidden: []``, the default) the logit is ``<w * u, v> + b``. So the vectors ``v`` of all
    items can be computed ahead and kept in an index, which is searched for the largest dot products with ``w * u``.

    The towers are those of Yi et al. 2019 (Sampling-bias-corrected neural modeling, RecSys, 10.1145/3298689.3346996),
    who divide the cosine of both vectors by a temperature. With ``normalise`` each vector has length ``sqrt(R)``, so
    that ``<u, v> = R cos(u, v)``, and the head's weights replace the temperature. Unlike theirs, this model learns
    from the labels of impressions, as every model here, and not from items sampled in the batch.

    The towers meet in the product alone, as long as no token holds both sides. A sequence encoder that looks at the
    candidate item (``din``, and others unless ``target_aware: false``) puts the item into the user's tokens. The token
    ``dense`` is a map of all dense features together, so it belongs to a single side.

    Its FLOPs are ``2 (U D h_1 + h_1 h_2 + ... + h_n R)`` per example for the user, and the same of I for the item.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Raises:
        ValueError: ``item`` names a feature without tokens, or leaves no tokens to the user.

    Example::

        inputs = BackboneInputs(tokens=("dense", "user", "item"), dim=16)
        backbone = TwoTower(TwoTower.Config(item=("item",), output=32), inputs)
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 32)
    """

    name: ClassVar[str] = "two_tower"

    class Config(ComponentConfig):
        """Fields of `two_tower`."""

        item: tuple[str, ...] = Field(
            min_length=1,
            description="The item's features, `dense` for all dense features together; all others are the user's.",
        )
        hidden: tuple[PositiveInt, ...] = Field((64,), description="Hidden widths of each tower; may be none.")
        output: PositiveInt = Field(32, description="Width of both vectors, and of the representation.")
        normalise: bool = Field(True, description="Whether both vectors are scaled to the length sqrt(output).")
        activation: ActivationName = Field("relu", description="Follows every hidden layer.")

    user_indices: Tensor
    item_indices: Tensor

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        item = _item_indices(config.item, inputs.tokens)
        user = [index for index in range(len(inputs.tokens)) if index not in item]
        if not user:
            raise ValueError(f"two_tower: item {config.item} takes all tokens, and leaves the user's tower none")
        self.register_buffer("user_indices", torch.tensor(user), persistent=False)
        self.register_buffer("item_indices", torch.tensor(item), persistent=False)
        self.user = _tower(len(user) * inputs.dim, config)
        self.item = _tower(len(item) * inputs.dim, config)
        self.output_dim = config.output

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        user_BUD = tokens_BND.index_select(1, self.user_indices)
        item_BID = tokens_BND.index_select(1, self.item_indices)
        representation_BR: Tensor = self.user(user_BUD.flatten(1)) * self.item(item_BID.flatten(1))
        return representation_BR


def _tower(width: int, config: TwoTower.Config) -> nn.Sequential:
    # The last layer has no activation: an item may be the opposite of what a user likes.
    layers = mlp([width, *config.hidden, config.output], config.activation)
    return nn.Sequential(*layers, RMSNorm(config.output)) if config.normalise else layers


def _item_indices(item: Sequence[str], tokens: Sequence[str]) -> list[int]:
    """Returns the indices of the item's tokens; a feature may have several, such as ``dense`` and ``dense:1``."""
    features = [token.partition(":")[0] for token in tokens]
    for name in item:
        if name not in features:
            raise ValueError(f"two_tower: item {name!r} is not among the features.{suggestion(name, features)}")
    return [index for index, feature in enumerate(features) if feature in item]
