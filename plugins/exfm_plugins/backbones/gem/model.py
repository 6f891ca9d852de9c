"""GEM as an exfm backbone.

Legend: B examples, N tokens, K summary tokens of all sequences, D width, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, ComponentField, ComponentSpec, JaggedSequence, suggestion
from exfm.layers import ActivationName, InputNormName, NormName, input_norm, mlp
from exfm_plugins.backbones.gem.blocks import DomainGate, GemLayer, GemLayerSpec, TargetName


class GEM(Backbone):
    """Layers in which tokens and histories refine each other, with attention across layers and gates for domains.

    After Meta's ads foundation model (engineering post of 2025-11-10), which names the modules and specifies none of
    them. Our reading, per layer, of tokens ``X`` and each sequence's events ``F``:

    - cross-feature learning as in InterFormer (arXiv 2411.09852), both ways: ``X_sum = Gate(W X)`` personalises a
      feed-forward network over the events, ``F' = PersonalisedFFN(F; X_sum)``, and the gated summary
      ``S_sum = Gate(Encoder(F', [X_sum || t]))`` joins the tokens. InterFormer's gate is printed as
      ``sigmoid(X * MLP(X))`` and described as a gate; ours is ``sigmoid(W X + b) * X``. Its mask over raw events is
      left out, because the personalised network of the first layer can filter events too.
    - sequence learning: the encoder, a pyramid. Its context is ``X_sum``, which takes the role of InterFormer's CLS
      tokens, and the candidate item ``t``, the input's tokens that share a table with the sequence, which it compares
      events with (``target``). Events are never dropped between layers: each layer's encoder reads all of them.
    - non-sequence learning: ``X' = Norm(X + W Inter([X || S_sum, ...]))``, the interaction being Wukong with attention
      across its own layers.
    - from the second layer on, ``X' = Norm(X' + MHA(X', [X_0 || X_1 ...]))``: tokens attend over those of every earlier
      layer, the input's among them.

    The representation is ``MLP([X || S_sum])`` of the last layer. Where ``domain`` names a token, such as the surface
    that an ad is shown on, its embedding gates the input's tokens and the representation (see ``DomainGate``), so that
    domains share a trunk and select from it. Each sequence has separate parameters. Without sequences, the layers
    have modules of tokens alone.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens, and the sequences.

    Raises:
        ValueError: ``domain`` is not a token, or ``heads`` do not divide the width.

    Example::

        inputs = BackboneInputs(("surface", "item"), 16, (SequenceShape("history", 500, targets=(1,)),))
        backbone = GEM(GEM.Config(domain="surface"), inputs)
        history = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        representation_BR = backbone(torch.randn(3, 2, 16), {"history": history})  # (3, 128)
    """

    name: ClassVar[str] = "gem"
    consumes_sequences: ClassVar[bool] = True

    class Config(ComponentConfig):
        """Fields of `gem`."""

        layers: PositiveInt = Field(2, description="Layers, each with a separate interaction and encoders.")
        interaction: Annotated[ComponentSpec, ComponentField("backbone")] = Field(
            {"name": "wukong", "cross_layer_attention": True},  # type: ignore[assignment]  # pydantic makes it a spec
            description="The backbone that mixes a layer's tokens and summaries.",
        )
        encoder: Annotated[ComponentSpec, ComponentField("sequence_encoder")] = Field(
            {"name": "pyramid"},  # type: ignore[assignment]  # pydantic makes it a spec
            description="The encoder that summarises a sequence in a layer.",
        )
        domain: str = Field(
            "", description="Name of the token whose embedding gates tokens and representation; empty for none."
        )
        domain_hidden: PositiveInt = Field(64, description="Hidden width of the MLPs that make the domain's gates.")
        target: TargetName = Field(
            "item",
            description="Compared with events by the encoder: the tokens that share a table with the sequence, or "
            "X_sum, which is also taken where there are no such tokens.",
        )
        compressed: PositiveInt = Field(4, description="Tokens of X_sum, which personalise the network over events.")
        ffn: PositiveInt = Field(2, description="Hidden width of the network over events, as a multiple of D.")
        heads: PositiveInt = Field(2, description="Heads of the attention over earlier layers; they divide D.")
        head_hidden: tuple[PositiveInt, ...] = Field(
            (128,), min_length=1, description="Widths of the MLP after the layers; the last is the representation's."
        )
        activation: ActivationName = Field("silu", description="In the network over events and the MLP at the end.")
        norm: NormName = Field("layer_norm", description="Of tokens, and before the network over events.")
        input_norm: InputNormName = Field(
            "none", description="layer_norm: all tokens of an example are normalised together before anything."
        )

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        spec = GemLayerSpec(
            interaction=config.interaction,
            encoder=config.encoder,
            compressed=config.compressed,
            ffn=config.ffn,
            heads=config.heads,
            activation=config.activation,
            norm=config.norm,
            target=config.target,
        )
        layers = [GemLayer(inputs, spec, first=depth == 0) for depth in range(config.layers)]
        self.layers = nn.ModuleList(layers)
        tokens_width = len(inputs.tokens) * inputs.dim
        self.layer_dims = {f"layers.{i}": tokens_width for i in range(config.layers)}
        self.input_norm = input_norm(config.input_norm, len(inputs.tokens), inputs.dim)
        self.output_dim = config.head_hidden[-1]
        widths = [tokens_width + layers[-1].num_summaries * inputs.dim, *config.head_hidden]
        self.head = mlp(widths, config.activation, activate_last=True)
        self.domain = _find_token(config.domain, inputs) if config.domain else None
        if self.domain is not None:
            self.token_gate = DomainGate(inputs.dim, tokens_width, config.domain_hidden)
            self.representation_gate = DomainGate(inputs.dim, self.output_dim, config.domain_hidden)

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) and raw sequences by name to the representation (B, R)."""
        tokens_BND = self.input_norm(tokens_BND)
        if self.domain is None:
            return self._trunk(tokens_BND, sequences)
        domain_BD = tokens_BND[:, self.domain]
        gated_BND = self.token_gate(tokens_BND.flatten(1), domain_BD).view_as(tokens_BND)
        representation_BR: Tensor = self.representation_gate(self._trunk(gated_BND, sequences), domain_BD)
        return representation_BR

    def _trunk(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        events = [sequences[shape.name] for shape in self.inputs.sequences]
        earlier = [tokens_BND]
        for layer in self.layers:
            tokens_BND, summaries_BKD, events = layer(tokens_BND, torch.cat(earlier, dim=1), events)
            earlier.append(tokens_BND)
        representation_BR: Tensor = self.head(torch.cat([tokens_BND, summaries_BKD], dim=1).flatten(1))
        return representation_BR


def _find_token(domain: str, inputs: BackboneInputs) -> int:
    if domain not in inputs.tokens:
        raise ValueError(f"gem: domain {domain!r} is not among the tokens.{suggestion(domain, inputs.tokens)}")
    return inputs.tokens.index(domain)
