"""Defines the section of a model that says which supervision it writes for its students."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from exfm.config.section import Section
from exfm.interfaces.duration import Duration, parse_duration


class StateSource(Section):
    """A vector of the model that states are read from."""

    model_config = ConfigDict(serialize_by_alias=True)

    vector: str = Field(
        alias="from",
        min_length=1,
        description="representation: the backbone's output; or a layer that the backbone names, such as layers.0.",
    )


class SupervisionConfig(Section):
    """The supervision that a model writes for its students."""

    delay: Duration = Field(
        parse_duration("0s"),
        description="How much older than a window's start the snapshot is that labels it; 0s: the model's own forward.",
    )
    embedding: Literal["none", "float16", "int8"] = Field(
        "none", description="Also store its representation of each example, and how: int8 has a scale per example."
    )
    embedding_dim: int | None = Field(
        None, gt=0, description="Numbers that the stored representation is compressed to; by default it is whole."
    )
    states: dict[str, tuple[str, ...] | StateSource] = Field(
        default_factory=dict,
        description="Also store a compact state of entities: a categorical feature, and the features that describe it, "
        "or {from: representation}, the model's own vector of the example, compressed.",
    )
    rows: tuple[str, ...] = Field(
        (), description="Also store these features' table rows, as they are after training on the example's batch."
    )
    state_dim: int = Field(16, gt=0, description="Width of a state.")
    state_dtype: Literal["float16", "int8"] = Field(
        "float16", description="How states are stored: int8 has a scale per state, and half the bytes."
    )
    store: bool | None = Field(
        None,
        description="Whether it is stored. By default where a model of this file learns from it, where other fields of "
        "this section are set, and where no model of this file has a teacher.",
    )
    lag: Duration = Field(
        parse_duration("0s"),
        description="How long after an example its states and rows reach students; 0s, for the student's next example, "
        "is an upper bound of their benefit.",
    )

    @property
    def described(self) -> dict[str, tuple[str, ...]]:
        """Lists the features that describe each entity whose state is made of features."""
        return {entity: names for entity, names in self.states.items() if not isinstance(names, StateSource)}

    @property
    def read(self) -> dict[str, str]:
        """Names the vector of the model that the state of each other entity is read from."""
        return {entity: source.vector for entity, source in self.states.items() if isinstance(source, StateSource)}

    @model_validator(mode="after")
    def _compressed_where_stored(self) -> SupervisionConfig:
        if self.embedding_dim is not None and self.embedding == "none":
            raise ValueError(
                f"embedding_dim: {self.embedding_dim} numbers of a representation that is not stored; set embedding to "
                "float16 or int8, or leave embedding_dim out"
            )
        return self
