"""FeatureSchema: the columns of a stream's rows, and their meaning.

Column names refer to the Arrow record batches that a DataSource yields. The core maps ids to rows of embedding tables.
Features that name the same ``table`` share its rows, so that the items of a sequence have the embeddings of the
candidate item.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from exfm.errors import suggestion
from exfm.interfaces.derived_features import BucketizedFeature, CrossedFeature, CrossPart
from exfm.interfaces.duration import Duration
from exfm.interfaces.named_column import NAME
from exfm.interfaces.named_column import NamedColumn as _NamedColumn
from exfm.interfaces.vector_feature import VectorFeature

IdMapping = Literal["hash", "row", "managed"]
Eviction = Literal["lru", "lfu", "distance"]
_LEAST_MANAGED = 16


class _IdFeature(_NamedColumn):
    """Base of features that are ids."""

    rows: int = Field(gt=0, description="Rows of its embedding table.")
    table: str = Field("", description="The table it looks up; where this is empty, a table with its name.")
    ids: IdMapping = Field(
        "hash",
        description="hash: any integer, string, bytes or UUID, hashed into the table. row: integers that already are "
        "table rows. managed: hashed, each with its row alone, which it loses to newer ids in time.",
    )
    eviction: Eviction = Field(
        "lru",
        description="Which managed id is evicted: that seen longest ago, seen least often, or least often lately.",
    )

    @property
    def table_name(self) -> str:
        """The embedding table that it looks up."""
        return self.table or self.name


class DenseFeature(_NamedColumn):
    """A finite number per row."""

    kind: Literal["dense"] = Field("dense", description="A finite number per row.")
    transform: Literal["none", "log1p"] = Field(
        "none", description="log1p: sign(x) * log(1 + |x|), for counts, prices and ages."
    )
    missing: Literal["mean", "learned"] | None = Field(
        None,
        description="What a null or NaN counts as. mean: the mean of the values so far, with an input that says so. "
        "learned: a value that the model learns. Left out, it is a bad row.",
    )


class CategoricalFeature(_IdFeature):
    """An id per row; a null is a missing id, whose embedding is zeros."""

    kind: Literal["categorical"] = Field("categorical", description="An id per row.")


class MultiValuedFeature(_IdFeature):
    """A list of ids per row, averaged; the embedding of an empty list is zeros."""

    kind: Literal["multi_valued"] = Field("multi_valued", description="A list of ids per row, averaged.")
    weights: str | None = Field(
        None,
        min_length=1,
        description="Column of the ids' weights, 0 or more, in lists as long: the mean is weighted. Left out, all ids "
        "of a row weigh the same.",
    )

    @property
    def source_columns(self) -> tuple[str, ...]:
        """All Arrow columns that it is read from."""
        return (self.source_column,) if self.weights is None else (self.source_column, self.weights)


class SequenceField(_NamedColumn):
    """An aspect of the events of a sequence: a list column, aligned with the other fields' lists."""

    kind: Literal["categorical", "dense"] = Field("categorical", description="Ids, or finite numbers.")
    rows: int = Field(1, gt=0, description="Rows of its embedding table (ids only).")
    table: str = Field(
        "", description="The table it looks up (ids only); where this is empty, a table of this field alone."
    )
    ids: IdMapping = Field("hash", description="As for a categorical feature.")
    eviction: Eviction = Field("lru", description="As for a categorical feature.")
    transform: Literal["none", "log1p"] = Field("none", description="As for a dense feature.")
    missing: Literal["learned"] | None = Field(
        None,
        description="What a null or NaN counts as (numbers only). learned: a vector that the model learns, in place of "
        "the number's. Left out, it is a bad row.",
    )

    @model_validator(mode="after")
    def _missing_numbers_only(self) -> SequenceField:
        if self.missing and self.kind == "categorical":
            raise ValueError(f"{self.name!r}: missing is for numbers (kind: dense); an event has an id in each field")
        return self


class EventTimes(BaseModel):
    """The times of the events of a sequence: a list column, aligned with the fields' lists.

    The times are no input by themselves: encoders and backbones that read times get each event's age in seconds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    column: str = Field(min_length=1, description="Its column in the record batches; a field may read the same column.")
    holds: Literal["age", "time"] = Field(
        "age",
        description="age: how long before its example an event happened. time: when it happened, as a timestamp or as "
        "a number since 1970, UTC.",
    )
    unit: Literal["us", "ms", "s", "min", "h", "d"] = Field(
        "s", description="The unit of numbers; timestamps have their own."
    )


class SequenceFeature(BaseModel):
    """An activity history: aligned list columns, oldest event first, all events strictly before the time of the row."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sequence"] = Field("sequence", description="An activity history, oldest event first.")
    name: str = Field(pattern=NAME, description="Its name in models and reports.")
    fields: tuple[SequenceField, ...] = Field(min_length=1, description="The aspects of an event.")
    max_length: int = Field(gt=0, description="The newest events that are kept of a longer history.")
    times: EventTimes | None = Field(None, description="When the events happened, for encoders that read it.")

    @property
    def source_columns(self) -> tuple[str, ...]:
        """All Arrow columns that it is read from; a column twice where its times are a field too."""
        columns = tuple(field.source_column for field in self.fields)
        return columns if self.times is None else (*columns, self.times.column)

    def table_name(self, field: SequenceField) -> str:
        """Returns the embedding table that a field of the sequence looks up."""
        return field.table or f"{self.name}_{field.name}"


SingleIdFeature = CategoricalFeature | BucketizedFeature | CrossedFeature
"""Features with at most a single id per row."""

BagFeature = SingleIdFeature | MultiValuedFeature
"""Features of ids, whose rows of a table are averaged to a token."""

Feature = Annotated[
    DenseFeature
    | CategoricalFeature
    | MultiValuedFeature
    | SequenceFeature
    | VectorFeature
    | BucketizedFeature
    | CrossedFeature,
    Field(discriminator="kind"),
]


LabelKind = Literal["binary", "regression", "multiclass"]
"""What a label holds: 0 or 1, a finite number, or the number of a class."""

LABEL_KINDS: frozenset[LabelKind] = frozenset(get_args(LabelKind))


class Label(_NamedColumn):
    """An outcome: 0 or 1, a finite number, or the number of a class; null where it is not known."""

    kind: LabelKind = Field(
        "binary",
        description="binary: 0 or 1. regression: a finite number, such as a watch time. multiclass: the number of a "
        "class, from 0 to classes - 1.",
    )
    classes: int | None = Field(None, ge=2, le=1_000, description="How many classes there are (multiclass only).")
    minimum: float | None = Field(
        None, allow_inf_nan=False, description="The least value that a row may have (regression only), such as 0."
    )
    delay: Duration = Field(timedelta(0), description="How long after the event its value is known.")
    oracle: str = Field(
        "", description="Column of the true probability, or expected value, where the stream is simulated."
    )
    sampling_rate: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the negatives that the log keeps, if they are down-sampled: each weighs as those that it "
        "stands for, so that predictions and figures are of all traffic.",
    )

    @model_validator(mode="after")
    def _kind_fits(self) -> Label:
        if (self.kind == "multiclass") != (self.classes is not None):
            count = "no classes" if self.classes is None else f"classes: {self.classes}"
            raise ValueError(
                f"label {self.name!r} is {self.kind}, with {count}: classes is the number of classes of kind: "
                "multiclass, and of no other kind"
            )
        if self.kind != "regression" and self.minimum is not None:
            raise ValueError(f"label {self.name!r} is {self.kind}: minimum: {self.minimum:g} is of regression labels")
        if self.kind != "binary" and self.sampling_rate < 1:
            raise ValueError(
                f"label {self.name!r} is {self.kind}: sampling_rate counts the negatives of a binary label; give rows "
                "that are sampled otherwise the inverse of their rate as weight"
            )
        if self.kind == "multiclass" and self.oracle:
            raise ValueError(f"label {self.name!r} is multiclass: a single column {self.oracle!r} holds no truth of it")
        return self

    @property
    def width(self) -> int:
        """How many numbers a prediction of it holds: a probability per class, or a single number."""
        return self.classes or 1


def rows_may_become(before: int, rows: int, ids: str) -> str:
    """Explains why a table may not have so many rows now; returns an empty string where it may.

    Args:
        before: the number of its rows until now.
        rows: the number of its rows from now on.
        ids: how ids map to them, as a feature's ``ids``.
    """
    if ids == "managed" and rows != before:
        return f"it had {before} rows and now has {rows}; where ids are managed a table keeps its rows"
    if rows < before:
        return f"it had {before} rows and now has {rows}; a table may grow, and does not shrink"
    # With a whole factor k, hash % (k * before) % before is the old row of an id, whose weights its new row takes.
    if ids == "hash" and rows % before:
        factor = rows // before
        return (
            f"it had {before} rows and now has {rows}; where ids are hashed a table grows by a whole factor, or ids "
            f"would read each other's rows. Nearest: {factor * before}, {(factor + 1) * before}"
        )
    return ""


class FeatureSchema(BaseModel):
    """Columns of a stream's rows: the example's id and time, its features and its labels.

    Raises:
        ValueError: names clash, or features that share a table disagree on its rows or on how ids map to them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    example_id: str = Field("example_id", description="Column of a 64-bit integer that is unique in the stream.")
    event_time: str = Field("event_time", description="Column of the time, a timestamp; rows are ordered by it.")
    group: str = Field("", description="Column whose values group examples for GAUC and intervals, as a rule the user.")
    domain: str = Field("", description="Column of the domain (surface, product), where there are several.")
    weight: str = Field("", description="Column of the weight of a row, 0 or more, in losses and figures.")
    features: tuple[Feature, ...] = Field(min_length=1, description="The inputs of models.")
    labels: tuple[Label, ...] = Field(min_length=1, description="The outcomes to predict; each is a task.")

    @field_validator("features")
    @classmethod
    def _resolve_crosses(cls, features: tuple[Feature, ...]) -> tuple[Feature, ...]:
        by_name = {feature.name: feature for feature in features}
        resolved: list[Feature] = []
        for feature in features:
            resolved.append(_resolved(feature, by_name) if isinstance(feature, CrossedFeature) else feature)
        return tuple(resolved)

    @model_validator(mode="after")
    def _consistent(self) -> FeatureSchema:
        names = [feature.name for feature in self.features] + [label.name for label in self.labels]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the schema names {', '.join(twice)} twice")
        options: dict[str, tuple[int, str, str]] = {}
        for table, user in self._table_users():
            requested = (user.rows, user.ids, user.eviction)
            if user.ids == "managed" and user.rows < _LEAST_MANAGED:
                raise ValueError(f"{user.name!r}: ids: managed wants a table of at least {_LEAST_MANAGED} rows")
            # The first feature that names a table decides; all later features have to agree with it.
            if options.setdefault(table, requested) != requested:
                here, other = _format_options(*requested), _format_options(*options[table])
                raise ValueError(
                    f"table {table!r} is shared, but {user.name!r} gives it {here} and another feature {other}"
                )
        return self

    def _table_users(self) -> Iterator[tuple[str, BagFeature | SequenceField]]:
        """Yields every feature and field of ids with its table; a shared table occurs several times."""
        for feature in self.features:
            if isinstance(feature, BagFeature):
                yield feature.table_name, feature
            elif isinstance(feature, SequenceFeature):
                for field in feature.fields:
                    if field.kind == "categorical":
                        yield feature.table_name(field), field

    @property
    def categorical(self) -> tuple[CategoricalFeature, ...]:
        """The features with an id each."""
        return tuple(feature for feature in self.features if isinstance(feature, CategoricalFeature))

    @property
    def sequences(self) -> tuple[SequenceFeature, ...]:
        """The features with events."""
        return tuple(feature for feature in self.features if isinstance(feature, SequenceFeature))

    @property
    def dense(self) -> tuple[DenseFeature, ...]:
        """The features with a number each."""
        return tuple(feature for feature in self.features if isinstance(feature, DenseFeature))

    @property
    def vectors(self) -> tuple[VectorFeature, ...]:
        """The features with a vector each."""
        return tuple(feature for feature in self.features if isinstance(feature, VectorFeature))

    @property
    def weighs_ids(self) -> bool:
        """Whether the ids of some feature have weights."""
        return any(isinstance(feature, MultiValuedFeature) and feature.weights is not None for feature in self.features)

    def entity_tables(self) -> dict[str, str]:
        """Returns the table of each categorical feature, by the feature's name."""
        return {feature.name: feature.table_name for feature in self.categorical}

    def tables(self) -> dict[str, int]:
        """Returns the number of rows of every embedding table, by table name."""
        return {table: user.rows for table, user in self._table_users()}

    def table_ids(self) -> dict[str, str]:
        """Returns how ids map to the rows of every embedding table, by table name."""
        return {table: user.ids for table, user in self._table_users()}

    def managed(self) -> dict[str, Eviction]:
        """Returns the eviction policy of each table whose ids are managed, by table name."""
        return {table: user.eviction for table, user in self._table_users() if user.ids == "managed"}

    def select(self, features: tuple[str, ...] | None) -> FeatureSchema:
        """Returns the schema with the named features only (all of them for None), in the schema's order."""
        if features is None:
            return self
        kept = tuple(feature for feature in self.features if feature.name in features)
        return self.model_copy(update={"features": kept})

    @property
    def columns(self) -> tuple[str, ...]:
        """The Arrow columns of a row, each once."""
        # A dict, because it removes duplicates and keeps the order.
        return tuple(dict.fromkeys(name for name in self._all_columns() if name))

    def _all_columns(self) -> Iterator[str]:
        """Yields every column, some of them twice, and an empty string for a column that the stream has not."""
        yield from (self.example_id, self.event_time, self.group, self.domain, self.weight)
        for feature in self.features:
            yield from feature.source_columns
        for label in self.labels:
            yield from (label.source_column, label.oracle)

    @property
    def weighted(self) -> tuple[str, ...]:
        """The names of the labels whose examples have weights, of their rows or by a sampling rate."""
        return tuple(label.name for label in self.labels if self.weight or label.sampling_rate < 1)

    def labels_of(self, tasks: Sequence[str]) -> dict[str, Label]:
        """Returns the labels of some tasks, by name, in the order of the tasks; unknown tasks are left out."""
        by_task = {label.name: label for label in self.labels}
        return {task: by_task[task] for task in tasks if task in by_task}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the labels."""
        return tuple(label.name for label in self.labels)


def _resolved(cross: CrossedFeature, features: Mapping[str, Feature]) -> CrossedFeature:
    """Returns a cross with the columns of its features.

    Raises:
        ValueError: it names a feature that has no single id per row, or that the schema lacks.
    """
    # The schema of a model that sees the cross and not all of its features, which the schema of the stream has.
    if cross.parts and not features.keys() >= set(cross.of):
        return cross
    usable = (CategoricalFeature, BucketizedFeature)
    allowed = [name for name, feature in features.items() if isinstance(feature, usable)]
    parts: list[CrossPart] = []
    for name in cross.of:
        feature = features.get(name)
        if isinstance(feature, BucketizedFeature):
            parts.append(CrossPart(column=feature.source_column, boundaries=feature.boundaries))
        elif isinstance(feature, CategoricalFeature):
            parts.append(CrossPart(column=feature.source_column))
        else:
            raise ValueError(
                f"{cross.name!r}: of names {name!r}, which is no categorical or bucketized feature of the schema."
                f"{suggestion(name, allowed)}"
            )
    return cross.model_copy(update={"parts": tuple(parts)})


def _format_options(rows: int, ids: str, eviction: str) -> str:
    return f"rows={rows}, ids={ids}" + (f", eviction={eviction}" if ids == "managed" else "")
