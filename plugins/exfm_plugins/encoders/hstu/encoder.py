"""HSTU as an exfm sequence encoder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from exfm import ComponentConfig
from exfm.components import EncoderInputs
from exfm.layers import HistoryEncoder, NormName, SummaryName
from exfm_plugins.encoders.hstu.blocks import HSTULayer


class HSTU(HistoryEncoder):
    """Hierarchical sequential transduction units over the history (arXiv 2402.17152)::

        U, V, Q, K = split(SiLU(f1(Norm(X))))
        A = SiLU(Q K^T + rab) / N                    causal: an event sees itself and older events
        X = X + f2(Norm(A V) * U)

    Attention is pointwise: without a softmax, the sum of an event's weights tells how much of its past concerns it.
    The first norm and N are not in the paper's equations but in its authors' code, where N is the longest history.
    Norm(A V) cancels a constant factor except for its epsilon, so N matters where attention is weak.

    The bias rab has a number for each distance between events and, with ``time_buckets``, a number for each bucket of
    the seconds between them, as in the authors' code: heads share both, and bucket k begins at e^(0.301 k) seconds. In
    that code a query has the time of the event after it, which is to be predicted. Here it has the time of its event,
    and the candidate item has the time of the example. There is no bias of times by default, because it needs a
    sequence with ``times``.

    Where the context has tokens that share a table with the sequence, the candidate item, their sum joins the history
    as its newest event, as in the paper's ranking: it sees all events, and none of them sees it. Computed on the jagged
    events, examples of similar length together. With T events an example's FLOPs in a layer are, but for padding,
    ``4 T D H (A + L) + 2 T D H L + 2 T^2 H (A + L)`` for H heads of widths A and L; in the last layer of
    ``summary: last`` only the newest event has a query.

    Args:
        config: see ``Config``.
        inputs: width of the tokens, the longest history, and which context tokens are the candidate item's.

    Raises:
        ValueError: ``heads`` do not divide the width, with ``summary: target``; or there are ``time_buckets`` and the
            sequence has no times.

    Example::

        encoder = HSTU(HSTU.Config(), EncoderInputs("history", 16, 500, context=("user", "item"), targets=(1,)))
        sequence = JaggedSequence(torch.randn(5, 16), torch.tensor([0, 2, 2, 5]), max_length=500)
        summary_B1D = encoder(sequence, torch.randn(3, 2, 16))  # (3, 1, 16)
    """

    name: ClassVar[str] = "hstu"

    class Config(ComponentConfig):
        """Fields of `hstu`."""

        layers: PositiveInt = Field(2, description="Transduction units in sequence.")
        heads: PositiveInt = Field(2, description="Attention heads.")
        attention_dim: PositiveInt = Field(16, description="Width of a head's queries and keys.")
        linear_dim: PositiveInt = Field(16, description="Width of a head's values and gates.")
        position_buckets: NonNegativeInt = Field(
            64,
            description="Distances between events that have a bias each; longer distances share the last; 0: none.",
        )
        time_buckets: int = Field(
            0,
            ge=0,
            le=128,
            description="Buckets of the time between events, each with a bias, 64 for up to 5 years; "
            "longer times share the last; 0: none.",
        )
        divisor: Literal["max_length", "events"] = Field(
            "max_length",
            description="N: the longest history there may be (the authors' code), or the events that an event sees.",
        )
        summary: SummaryName = Field(
            "last",
            description="last: the newest event; mean: the mean of all events; target: attention over these with the "
            "candidate item as query, or a learned query where there is no candidate.",
        )
        append_target: bool = Field(
            True, description="Whether the candidate item is the newest event, where the context has its tokens."
        )
        norm: NormName = Field(
            "layer_norm", description="Of events, of the output of attention, and before the summary."
        )

    def __init__(self, config: Config, inputs: EncoderInputs) -> None:
        if config.time_buckets and not inputs.times:
            raise ValueError(
                f"time_buckets: {config.time_buckets}, but the sequence {inputs.sequence!r} has no times; name their "
                "column as the sequence's times, or set time_buckets: 0"
            )
        longest = inputs.max_length + (config.append_target and bool(inputs.targets))
        # With `summary: last` nothing reads other events of the last layer.
        queries_by_layer: list[int | None] = [None] * config.layers
        if config.summary == "last":
            queries_by_layer[-1] = 1
        layers = [
            HSTULayer(
                inputs.dim,
                config.heads,
                config.attention_dim,
                config.linear_dim,
                position_buckets=config.position_buckets,
                time_buckets=config.time_buckets,
                divisor=longest if config.divisor == "max_length" else None,
                norm_name=config.norm,
                queries=queries,
            )
            for queries in queries_by_layer
        ]
        super().__init__(
            config,
            inputs,
            layers,
            summary=config.summary,
            heads=config.heads,
            norm_name=config.norm,
            append_target=config.append_target,
        )
        self.reads_times = config.time_buckets > 0
