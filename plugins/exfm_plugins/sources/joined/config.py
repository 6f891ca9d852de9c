"""Configures the logs of the data source `joined`, and how their events are joined to impressions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from exfm.components import suggestion
from exfm.sources import Duration, RowGroupSource, TimeUnit

NOTHING = timedelta(0)


def _to_mapping(value: Any) -> Any:
    """Reads ``a`` and ``[a, b]`` as ``{a: a}`` and ``{a: a, b: b}``."""
    if isinstance(value, str):
        value = [value]
    return dict(zip(value, value, strict=True)) if isinstance(value, list | tuple) else value


_NAMES: dict[str, Any] = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_PAIRS: dict[str, Any] = {"type": "object", "additionalProperties": {"type": "string"}, "minProperties": 1}
Columns = Annotated[
    dict[str, str],
    Field(min_length=1),
    BeforeValidator(_to_mapping),
    WithJsonSchema({"anyOf": [{"type": "string"}, _NAMES, _PAIRS]}),
]
"""Columns of a log by the name that they have elsewhere: a name, a list of names, or a mapping of names to columns."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Log(_Section):
    """A log of events: Parquet files, whose rows may be in any order."""

    path: str = Field(description="Folder (with its sub-folders), file or glob; any fsspec URL.")
    time: str = Field(description="Column of the time of an event.")
    time_unit: TimeUnit = Field("timestamp", description="timestamp, or what the time counts since 1970, UTC.")
    lateness: Duration = Field(
        NOTHING, description="The most that an event may come after newer events of its log; a label waits for it."
    )


class Join(_Section):
    """Base of the joins of a log to the impressions."""

    log: str = Field(description="A name in logs.")
    key: Columns = Field(description="Columns that are equal: a name, a list, or {impression's column: log's column}.")

    @property
    def outputs(self) -> dict[str, str]:
        """The columns that the join adds, by name, with the log's columns that they are read from."""
        return {}

    @property
    def values(self) -> tuple[str, ...]:
        """The columns of the log that the join reads, beside time and keys.

        All of them are read where some are needed, because they decide the order of simultaneous events.
        """
        return tuple(filter(None, self.outputs.values()))


class LabelJoin(Join):
    """A label: 1 where an event of the log follows the impression in time, 0 where none has."""

    within: Duration = Field(description="How long after its impression an event counts: the attribution window.")
    value: str = Field("", description="Column of the label's value in the first event that counts; 1 if left out.")
    credit: Literal["last", "every"] = Field(
        "last",
        description="last: an event counts for the last impression at or before it; every: for each within the window.",
    )

    @property
    def values(self) -> tuple[str, ...]:
        """The columns of the log that the join reads, beside time and keys."""
        return (self.value,) if self.value else ()

    def competes(self, example_id: str) -> bool:
        """Tells whether several impressions may have the keys of an event, which counts for a single time of them."""
        return self.credit == "last" and example_id not in self.key


class AsOfJoin(Join):
    """Features of the newest row of a log strictly before the impression."""

    columns: Columns = Field(description="The features: names in the log, or {feature's column: log's column}.")
    keep: Duration | None = Field(
        None, description="How old the row may be; any age if left out, which holds the whole log in memory."
    )

    @property
    def outputs(self) -> dict[str, str]:
        """The columns that the join adds, by name, with the log's columns that they are read from."""
        return self.columns


class HistoryJoin(Join):
    """Lists of the newest events of a log strictly before the impression, oldest first."""

    columns: Columns = Field(description="The lists: names in the log, or {list's column: log's column}.")
    times: str = Field("", description="Name of a further list: the times of the events, as timestamps.")
    # The bound keeps the offsets of the lists of 65,536 rows within 32 bits.
    max_length: int = Field(gt=0, le=10_000, description="The most events of a history; the newest are kept.")
    keep: Duration = Field(description="How old an event may be; so much of the log is held in memory.")

    @property
    def outputs(self) -> dict[str, str]:
        """The columns that the join adds, by name, with the log's columns that they are read from; "" is the time."""
        return {**self.columns, self.times: ""} if self.times else self.columns


class JoinedConfig(RowGroupSource.Config):
    """Configures the impressions, the logs, and the joins."""

    path: str = Field(description="The impressions: folder (with its sub-folders), file or glob; any fsspec URL.")
    logs: dict[str, Log] = Field(description="The logs that impressions are joined to, by a name of your choice.")
    labels_from: dict[str, LabelJoin] = Field(
        default_factory=dict, description="Joins of labels, by label; other labels are columns of the impressions."
    )
    as_of: dict[str, AsOfJoin] = Field(
        default_factory=dict, description="Joins of features, by a name of your choice: the newest row before."
    )
    histories: dict[str, HistoryJoin] = Field(
        default_factory=dict, description="Joins of histories, by a name of your choice: the newest events before."
    )
    complete_until: AwareDatetime | None = Field(
        None,
        description="All logs are complete until this time, though they may have no event as new, such as "
        "2026-01-31T00:00:00Z.",
    )
    threads: int = Field(2, gt=0, description="Threads of DuckDB.")
    memory_mb: int = Field(2048, ge=64, description="Memory of DuckDB; a query that needs more writes to TMPDIR.")

    def joins(self) -> Iterator[tuple[str, Join]]:
        """Yields all joins with their key paths."""
        for section in ("labels_from", "as_of", "histories"):
            for name, join in getattr(self, section).items():
                yield f"{section}.{name}", join

    def label_columns(self) -> dict[str, str]:
        """Returns the columns of the labels that are joined, by label."""
        return {label.name: label.source_column for label in self.labels if label.name in self.labels_from}

    def active_joins(self) -> dict[str, Join]:
        """Returns the joins that the columns of the schema need, by key path."""
        schema_columns = set(self.feature_schema().columns)
        labels = {f"labels_from.{name}" for name in self.label_columns()}
        return {key: join for key, join in self.joins() if key in labels or schema_columns & join.outputs.keys()}

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that are read from the impressions."""
        joined = set(self.label_columns().values())
        keys: list[str] = []
        for join in self.active_joins().values():
            joined |= join.outputs.keys()
            keys += join.key
        kept = [column for column in self.feature_schema().columns if column not in joined]
        return tuple(dict.fromkeys([*kept, *keys]))

    @model_validator(mode="after")
    def _check_joins(self) -> Self:
        by_column: dict[str, str] = {self.example_id: "example_id", self.event_time: "event_time"}
        for label, column in self.label_columns().items():
            by_column[column] = f"labels_from.{label}"
        for key, join in self.joins():
            if join.log not in self.logs:
                raise ValueError(f"{key}.log: there is no log {join.log!r}.{suggestion(join.log, self.logs)}")
            for column in join.outputs:
                if column in by_column:
                    raise ValueError(
                        f"{key}: the column {column!r} is that of {by_column[column]}; give it another name, as in "
                        f"columns: {{{column}_2: {join.outputs[column] or column}}}"
                    )
                by_column[column] = key
        for key, join in self.joins():
            for column in join.key:
                if column in by_column and by_column[column] not in ("example_id", "event_time"):
                    raise ValueError(
                        f"{key}.key: {column!r} must be a column of the impressions, and {by_column[column]} adds it"
                    )
            keep = getattr(join, "keep", None)
            if keep is not None and keep <= NOTHING:
                raise ValueError(f"{key}.keep: it must be longer than 0s, or there is nothing to join")
        self._check_labels(self.labels_from)
        return self

    def _check_labels(self, joins: Mapping[str, LabelJoin]) -> None:
        """Checks that each joined label exists, and is declared to be known after its attribution window."""
        labels = {label.name: label for label in self.labels}
        for name, join in joins.items():
            if name not in labels:
                raise ValueError(f"labels_from: there is no label {name!r}.{suggestion(name, labels)}")
            if labels[name].delay < join.within:
                dumped = self.model_dump(mode="json")
                delay = next(label["delay"] for label in dumped["labels"] if label["name"] == name)
                within = dumped["labels_from"][name]["within"]
                raise ValueError(
                    f"labels_from.{name}.within is {within}, and the label's delay {delay}: that there was no event is "
                    f"known when the window has passed. Set delay: {within} or longer for {name!r} in labels"
                )
