"""Defines the section ``search`` of an experiment file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, StrictFloat, StrictInt, model_validator

from exfm.config.section import Section

Number = StrictInt | StrictFloat


class SearchedParameter(Section):
    """The values of a key to search: a range of numbers, or choices."""

    low: Number | None = Field(
        None, description="The lowest value; a range of whole numbers where both ends are whole."
    )
    high: Number | None = Field(None, description="The highest value.")
    log: bool = Field(False, description="Whether equal ratios are equally likely, as for learning rates.")
    step: Number | None = Field(None, description="The distance between the values of a range; none by default.")
    choices: tuple[Any, ...] | None = Field(None, description="The values, of any type, in place of a range.")

    @model_validator(mode="after")
    def _check(self) -> SearchedParameter:
        """Checks that there is a range or choices, and not both."""
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.step is not None or self.log:
                raise ValueError("give choices, or low and high, and not both")
            if len(self.choices) < 2 or any(value in self.choices[:index] for index, value in enumerate(self.choices)):
                raise ValueError("choices are at least two different values")
            return self
        if self.low is None or self.high is None:
            raise ValueError("give low and high, or choices")
        if self.low >= self.high:
            raise ValueError("low must be below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs low above 0, and no step")
        if self.step is not None and self.step <= 0:
            raise ValueError("step must be above 0")
        return self

    @property
    def is_whole(self) -> bool:
        """Tells whether the values of a range are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)


class SearchSection(Section):
    """What `exfm search` searches; other commands do not read it."""

    model: str = Field(description="The model whose gain over its control is the objective.")
    parameters: dict[str, SearchedParameter] = Field(
        min_length=1, description="Values to search, by key path, such as models.vm.embedding_dim."
    )
    task: str = Field("", description="The label of the objective; the model's first by default.")
    trials: int = Field(30, ge=2, description="Trials of the model, of its control and of each baseline alike.")
    holdout: float = Field(
        0.3, gt=0, lt=1, description="The share of the windows at the end of the stream that no trial reads."
    )
    serving_cost: float = Field(
        1.0, ge=1, description="The highest serving cost of a trial, as a multiple of the cost of the file as it is."
    )
    pruner: Literal["median", "successive_halving", "none"] = Field(
        "median", description="Which trials end early, by their gain after each window."
    )
    warmup: int = Field(2, ge=1, description="The windows at the beginning after which no trial ends early.")
    seeds: int = Field(3, ge=1, description="Fresh seeds that the chosen trials are run again with.")
