"""The pyramid as an exfm backbone.

Legend: B examples, N tokens, D width, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from exfm import Backbone
from exfm.components import BackboneInputs, ComponentField, ComponentSpec, EncoderInputs, JaggedSequence, suggestion
from exfm_plugins.encoders.pyramid.encoder import Pyramid
from exfm_plugins.encoders.pyramid.levels import PyramidLevel


class PyramidBackbone(Backbone):
    """Encodes every raw sequence by a pyramid, and passes tokens and summaries to another backbone.

    Equivalent to ``sequence_encoder: {name: pyramid}`` with the ``interaction`` as backbone, in a single component that
    can be nested in others. See ``Pyramid`` for the pyramid. Without sequences, it is the interaction alone.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens, and the sequences.

    Raises:
        ValueError: ``target`` names a token that does not exist.

    Example::

        inputs = BackboneInputs(("user", "item"), 16, (SequenceShape("history", 500, targets=(1,)),))
        backbone = PyramidBackbone(PyramidBackbone.Config(), inputs)
        history = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        representation_BR = backbone(torch.randn(3, 2, 16), {"history": history})
    """

    name: ClassVar[str] = "pyramid"
    consumes_sequences: ClassVar[bool] = True

    class Config(Pyramid.Config):
        """Fields of `pyramid` as a backbone."""

        interaction: Annotated[ComponentSpec, ComponentField("backbone")] = Field(
            {"name": "wukong"},  # type: ignore[assignment]  # pydantic turns the default into a spec
            description="The backbone that tokens and summaries go through.",
        )
        target: tuple[str, ...] = Field(
            (),
            description="Tokens whose sum is the candidate item that every history is compared with; none: those that "
            "share a table with the sequence.",
        )

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        named = tuple(_find_token(token, inputs) for token in config.target)
        names = list(inputs.tokens)
        # Prefixed, because torch refuses a child with the name of an attribute of ModuleDict.
        self.encoders = nn.ModuleDict()
        for shape in inputs.sequences:
            targets = named or shape.targets
            encoder = Pyramid(config, EncoderInputs(shape.name, inputs.dim, shape.max_length, inputs.tokens, targets))
            self.encoders[f"sequence_{shape.name}"] = encoder
            names += [f"{shape.name}:{k}" for k in range(encoder.num_tokens)]
        self.interaction: Backbone = config.interaction.build(BackboneInputs(tuple(names), inputs.dim))
        self.output_dim = self.interaction.output_dim

    def blocks(self) -> list[nn.Module]:
        """Lists the levels of all pyramids, and the interaction's blocks."""
        levels = [module for module in self.encoders.modules() if isinstance(module, PyramidLevel)]
        return [*levels, *self.interaction.blocks()]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) and raw sequences by name to the representation (B, R)."""
        summaries = [
            self.encoders[f"sequence_{shape.name}"](sequences[shape.name], tokens_BND)
            for shape in self.inputs.sequences
        ]
        representation_BR: Tensor = self.interaction(torch.cat([tokens_BND, *summaries], dim=1), {})
        return representation_BR


def _find_token(token: str, inputs: BackboneInputs) -> int:
    if token not in inputs.tokens:
        raise ValueError(f"pyramid: target {token!r} is not among the tokens.{suggestion(token, inputs.tokens)}")
    return inputs.tokens.index(token)
