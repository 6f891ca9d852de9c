"""InterFormer as an exfm backbone.

Legend: B examples, N tokens, E events of all examples, D width, R width of the representation or of the interaction's,
W width of an input of the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from exfm import Backbone, ComponentConfig
from exfm.components import BackboneInputs, ComponentField, ComponentSpec, JaggedSequence
from exfm.layers import ActivationName, InputNormName, input_norm, mlp
from exfm_plugins.backbones.interformer.layer import (
    GateForm,
    InteractionArch,
    InterFormerLayer,
    InterFormerLayerSpec,
    SequenceSummary,
    TokenSummary,
)
from exfm_plugins.backbones.interformer.sequences import CandidateMeetings, MaskNet, OptionalNorm


class InterFormer(Backbone):
    """Tokens and sequences that learn from each other in every layer, neither summarised early (arXiv 2411.09852).

    ``S = MLP_lce(S * MLP_mask(S))`` merges raw sequences. Each layer has three arches, of which the last two are
    independent of each other:

    - cross: ``X_sum = Gate(MLP_lce(X))``, ``S_sum = Gate([CLS || PMA || recent])``;
    - interaction: ``X' = MLP(Inter([X || S_sum]))``, Inter being any backbone;
    - sequence: ``S' = MHA(PFFN(X_sum, S))``, rotary, with ``PFFN(X_sum, S) = (X_sum W_p) S``.

    X_sum of the first layer is prepended to the events: these are the CLS tokens. The representation is
    ``MLP([X_sum || S_sum])`` of the tokens and events after the last layer.

    The paper leaves choices open, which are made here as follows:

    - the paper does not define the candidate item. Where tokens share a table with a sequence, their sum ``t`` meets
      its events before the mask, ``e + W (e * t)``, and follows them as the newest event, so that it attends over all
      others in the sequence arch, and is a recent event of S_sum; without ``meets_candidate`` it does neither.
    - ``event_norm`` normalises events after the meeting, which multiplies embeddings with embeddings, as the mask does,
      and those of rare items can be large. ``mask: false`` leaves the mask out.
    - ``input_norm`` normalises the tokens before anything: X_sum, and with it the CLS tokens and PFFN, would otherwise
      have the size of raw embeddings.
    - residuals and norms of layers: ``X' = Norm(X + MLP(...))``, ``P = S + PFFN(X_sum, S)`` and
      ``S' = Norm(P + MHA(P))``; ``residual: none`` takes the equations as printed.
    - sequences of different lengths are aligned at their newest events, and padded with zeros (see ``MaskNet``).
    - the printed gate outputs numbers between 0 and 1, for any sign and size of the token, so the other reading is the
      default.
    - the gate's MLP and both MLP_lce are linear layers, the mask's MLP has a hidden layer as wide as its input.
    - with fewer than ``num_recent`` events, zeros replace the missing events. Without history an example has CLS tokens
      alone. Without sequences in the data the layers are interaction arches alone, and the head's input is X_sum.
    - by X_sum alone the head reads the tokens; with ``head_input: tokens`` it reads X instead, with
      ``interaction`` Inter's representation of the last layer, too.
    - the widths of the head, 1024-512-256-128 in the paper: smaller by default, for a laptop.

    FLOPs of an example with ``n`` tokens, ``k`` sequences of ``T`` events, ``m = num_cls``, ``p = num_pma``,
    ``s = m + p + num_recent``, in a layer that gets ``t`` events, ``T + m`` in the first, and keeps ``q`` of them::

        2 k T D^2                                      events meeting the candidate item, where there is one;
                                                       T counts it from here on
        (4 k^2 + 2 k) T D^2                            mask and merging; 2 k T D^2 without mask
        2 n m D + 2 m D^2                              X_sum, per layer and for the head that reads it
        4 t D^2 + 4 p t D + (2 p + 2 s) D^2            S_sum, per layer and for the head
        4 m t D                                        PFFN, per layer
        4 t D^2 + 4 q D^2 + 4 q t D                    MHA, per layer
        Inter of n + s tokens, and 2 R n D             interaction, per layer, R wide, without hidden layers

    and the head. ``count_flops`` misses half of PFFN's, a weighted sum that is not a matrix product.

    Args:
        config: see ``Config``.
        inputs: names and width of the tokens, and the sequences.

    Raises:
        ValueError: ``heads`` do not divide the width into even parts.

    Example::

        inputs = BackboneInputs(("user", "item"), 16, (SequenceShape("history", 500, targets=(1,)),))
        backbone = InterFormer(InterFormer.Config(layers=2), inputs)
        history = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        representation_BR = backbone(torch.randn(3, 2, 16), {"history": history})  # (3, 64)
    """

    name: ClassVar[str] = "interformer"
    consumes_sequences: ClassVar[bool] = True

    class Config(ComponentConfig):
        """Fields of `interformer`."""

        layers: PositiveInt = Field(2, description="Layers; 1 to 3 in the paper.")
        interaction: Annotated[ComponentSpec, ComponentField("backbone")] = Field(
            {"name": "wukong"},  # type: ignore[assignment]  # pydantic turns the default into a spec
            description="Inter: the backbone that mixes a layer's tokens and S_sum.",
        )
        interaction_hidden: tuple[PositiveInt, ...] = Field(
            (),
            description="Hidden widths of the MLP that maps Inter's representation to tokens; none for a linear map.",
        )
        num_cls: PositiveInt = Field(4, description="Tokens of X_sum, and so CLS tokens.")
        num_pma: PositiveInt = Field(2, description="Learned queries that attend over all events, for S_sum.")
        num_recent: PositiveInt = Field(2, description="Newest events in S_sum.")
        heads: PositiveInt = Field(2, description="Attention heads, which divide the width into even parts; 1 to 8.")
        queries: tuple[PositiveInt, ...] = Field(
            (),
            description="For each layer, the most recent events that it keeps besides CLS tokens, having looked at "
            "all (arXiv 2510.26104); empty for all.",
        )
        meets_candidate: bool = Field(
            True,
            description="Whether raw events meet the candidate item t, the tokens that share a table with the "
            "sequence, as e + W (e * t), and t follows them as the newest event (ours).",
        )
        event_norm: OptionalNorm = Field(
            "none",
            description="Norm of raw events once they have met the candidate item (ours); none as published.",
        )
        mask: bool = Field(
            True, description="Whether events are filtered, S * MLP_mask(S), as published, before they are merged."
        )
        input_norm: InputNormName = Field(
            "none", description="layer_norm: all tokens of an example are normalised together before anything (ours)."
        )
        gate: GateForm = Field(
            "multiplicative", description="sigmoid(MLP(X)) * X, or as printed in the paper sigmoid(X * MLP(X))."
        )
        residual: OptionalNorm = Field(
            "layer_norm",
            description="Norm of the sum of an arch's input and output; with none, inputs are not added either.",
        )
        activation: ActivationName = Field("silu", description="In all MLPs, Swish in the paper.")
        head_input: Literal["summaries", "tokens", "interaction"] = Field(
            "summaries",
            description="The head reads [X_sum || S_sum], as published, or [X || S_sum], all tokens of the last layer, "
            "or the summaries and the last interaction's representation (both ours).",
        )
        head_hidden: tuple[PositiveInt, ...] = Field(
            (128, 64), min_length=1, description="Widths of the MLP at the end; the last is the representation's."
        )

        @model_validator(mode="after")
        def _queries_for_every_layer(self) -> Self:
            if self.queries and len(self.queries) != self.layers:
                raise ValueError(f"queries has {len(self.queries)} numbers for {self.layers} layers: give one for each")
            return self

    def __init__(self, config: Config, inputs: BackboneInputs) -> None:
        super().__init__(config, inputs)
        if inputs.dim % (2 * config.heads):
            raise ValueError(
                f"interformer: heads={config.heads} do not divide the width of {inputs.dim} into even parts"
            )
        spec = InterFormerLayerSpec(
            interaction=config.interaction,
            interaction_hidden=config.interaction_hidden,
            num_cls=config.num_cls,
            num_pma=config.num_pma,
            num_recent=config.num_recent,
            heads=config.heads,
            gate=config.gate,
            residual=config.residual,
            activation=config.activation,
        )
        self.input_norm = input_norm(config.input_norm, len(inputs.tokens), inputs.dim)
        reads_tokens = config.head_input == "tokens"
        num_read = len(inputs.tokens) if reads_tokens else config.num_cls
        if inputs.sequences:
            queries_by_layer = config.queries or (None,) * config.layers
            targets = [shape.targets if config.meets_candidate else () for shape in inputs.sequences]
            self.meeting = CandidateMeetings(targets, inputs.dim, config.event_norm)
            self.mask = MaskNet(len(inputs.sequences), inputs.dim, config.activation, filters=config.mask)
            layers: list[InterFormerLayer] = []
            for queries in queries_by_layer:
                layers.append(InterFormerLayer(inputs, spec, queries, first=not layers))
            self.layers, last = nn.ModuleList(layers), layers[-1].interaction_arch
            self.sequence_summary = SequenceSummary(inputs.dim, spec)
            num_read += len(spec.summary_names)
        else:
            arches = [InteractionArch(inputs.tokens, (), inputs.dim, spec) for _ in range(config.layers)]
            self.layers, last = nn.ModuleList(arches), arches[-1]
        self.layer_dims = {f"layers.{i}": len(inputs.tokens) * inputs.dim for i in range(config.layers)}
        self.token_summary = nn.Identity() if reads_tokens else TokenSummary(len(inputs.tokens), inputs.dim, spec)
        self._reads_interaction = config.head_input == "interaction"
        read_width = num_read * inputs.dim + self._reads_interaction * last.interaction.output_dim
        self.head = mlp([read_width, *config.head_hidden], config.activation, activate_last=True)
        self.output_dim = config.head_hidden[-1]

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Maps tokens (B, N, D) and raw sequences by name to the representation (B, R)."""
        tokens_BND = self.input_norm(tokens_BND)
        if self.inputs.sequences:
            events = [sequences[shape.name] for shape in self.inputs.sequences]
            sequence = self.mask(self.meeting(events, tokens_BND))
            for layer in self.layers:
                tokens_BND, mixed_BR, sequence = layer(tokens_BND, sequence)
            summaries = [self.token_summary(tokens_BND), self.sequence_summary(sequence)]
        else:
            for layer in self.layers:
                tokens_BND, mixed_BR = layer(tokens_BND, tokens_BND)
            summaries = [self.token_summary(tokens_BND)]
        head_inputs_BW = [summary.flatten(1) for summary in summaries]
        if self._reads_interaction:
            head_inputs_BW.append(mixed_BR)
        representation_BR: Tensor = self.head(torch.cat(head_inputs_BW, dim=1))
        return representation_BR
