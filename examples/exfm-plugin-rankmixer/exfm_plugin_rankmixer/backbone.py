"""RankMixer as an exfm backbone.

Legend: B examples, N tokens of features in width D, T mixed tokens, R their width and the representation's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import exfm
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn
from torch.nn.functional import pad

from exfm_plugin_rankmixer.blocks import Block, PerTokenLinear


class RankmixerBackbone(exfm.Backbone):
    """Layers of parameter-free token mixing and feed-forward networks with weights per token (arXiv 2507.15551).

    The embeddings of all features, side by side in the schema's order, are cut into T equal parts, each projected to a
    mixed token of its own: features that belong together should stand together. After the layers the tokens are
    averaged. Heads are as many as tokens, as in the paper. Without its sparse mixture of experts.

    A layer has ``2 k T R^2`` weights, and as many multiplications for an example.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens.

    Raises:
        ValueError: there are too few features for so many tokens.

    Example::

        inputs = exfm.components.BackboneInputs(tokens=("user", "item", "hour"), dim=16)
        backbone = RankmixerBackbone(RankmixerBackbone.Config(tokens=4, width=32), inputs)
        representation_BR = backbone(torch.randn(8, 3, 16), {})  # (8, 32)
    """

    name: ClassVar[str] = "rankmixer"

    class Config(exfm.ComponentConfig):
        """Fields of `rankmixer`."""

        layers: PositiveInt = Field(2, description="Layers of mixing and per-token networks (L in the paper).")
        tokens: PositiveInt = Field(8, description="Mixed tokens, and heads of each (T = H in the paper).")
        width: PositiveInt = Field(64, description="Width of a mixed token, a multiple of `tokens` (D in the paper).")
        expansion: PositiveInt = Field(4, description="How many times wider a per-token network's hidden layer is (k).")

        @model_validator(mode="after")
        def _heads_are_equal(self) -> RankmixerBackbone.Config:
            if self.width % self.tokens:
                raise ValueError(f"width must be a multiple of tokens; given: width={self.width}, tokens={self.tokens}")
            return self

    def __init__(self, config: Config, inputs: exfm.components.BackboneInputs) -> None:
        super().__init__(config, inputs)
        whole = len(inputs.tokens) * inputs.dim
        part = -(-whole // config.tokens)
        if part * (config.tokens - 1) >= whole:
            raise ValueError(
                f"rankmixer: {whole} numbers of {len(inputs.tokens)} features make no {config.tokens} tokens"
            )
        self.parts = (config.tokens, part)
        self.missing = config.tokens * part - whole
        self.project = PerTokenLinear(config.tokens, part, config.width)
        self.layers = nn.ModuleList(Block(config.tokens, config.width, config.expansion) for _ in range(config.layers))
        self.output_dim = config.width

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, exfm.components.JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) to the representation (B, R). ``sequences`` is not used."""
        x_BTR: Tensor = self.project(pad(tokens_BND.flatten(1), (0, self.missing)).view(-1, *self.parts))
        for layer in self.layers:
            x_BTR = layer(x_BTR)
        return x_BTR.mean(1)
