"""TableOptimizer: the optimizer of embedding tables, as an experiment configures it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class TableOptimizer(BaseModel):
    """The optimizer of the embedding tables. It runs fused with the backward pass: there is no step to call."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Literal["adagrad", "rowwise_adagrad", "sgd"] = Field(
        "adagrad", description="adagrad keeps an accumulator per weight, rowwise_adagrad per row."
    )
    lr: float = Field(0.1, gt=0, description="Learning rate.")
    eps: float = Field(1e-8, gt=0, description="Added to the root of the accumulator.")
