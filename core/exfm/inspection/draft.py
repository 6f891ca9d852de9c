"""Drafts the schema of a log: features with their tables, labels, ids, and all that was left out and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from exfm.errors import ConfigError
from exfm.inspection.columns import Column
from exfm.inspection.leaks import leak
from exfm.inspection.lists import MOST_EVENTS, Lists, read_lists
from exfm.inspection.log import Log
from exfm.inspection.roles import absent_name, find_example_id, find_group, find_labels
from exfm.inspection.sample import Sample
from exfm.inspection.scalars import field_entry, is_number_list, scalar_kind, table_comment, table_rows
from exfm.inspection.times import DAY_US, EventTime, find_event_time


@dataclass(frozen=True)
class DraftFeature:
    """Describes a feature.

    Attributes:
        entry: its mapping in the experiment file, without ``fields``.
        fields: mappings and comments of a sequence's fields.
    """

    entry: dict[str, Any]
    comment: str
    column: Column
    fields: tuple[tuple[dict[str, Any], str], ...] = ()

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.entry["name"])

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.entry["kind"])


@dataclass
class Draft:
    """Describes the schema of a log.

    Attributes:
        example_id: the column of example ids; where ``is_numbered``, a name that is in no file.
        left_out: reasons by column.
    """

    log: Log
    sample: Sample
    time: EventTime
    example_id: str
    is_numbered: bool
    group: Column | None
    labels: list[tuple[dict[str, Any], str]]
    features: list[DraftFeature] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def draft_schema(log: Log, sample: Sample, now_us: int) -> Draft:
    """Drafts the schema.

    Args:
        now_us: the present time, after which no row can be.

    Raises:
        ConfigError: no column is a time, a label or a feature.
    """
    time = find_event_time(log, sample, now_us)
    left_out = _left_out_first(sample)
    columns = [column for name, column in sample.columns.items() if name != time.column and name not in left_out]
    labels = find_labels(log, columns)
    warnings = list(time.warnings)
    unlabelled = [column for column in columns if column not in labels.columns]
    repeating: dict[str, str] = {}
    example_id = find_example_id(unlabelled, repeating)
    # Of an id of a few rows nothing can be learned, because it does not come again.
    inputs = [column for column in unlabelled if column is not example_id and column.name not in repeating]
    warnings += [f"{name}: {reason}" for name, reason in repeating.items()]
    names = _Names()
    entries = [(_entry(names, label), _label_comment(label)) for label in labels.columns]
    draft = Draft(
        log, sample, time, example_id.name if example_id else absent_name(list(sample.columns)),
        example_id is None, find_group(inputs), entries, left_out=left_out | repeating, warnings=warnings,
    )  # fmt: skip
    kept = _without_leaks(draft, [column for column in inputs if column.kind != "list"], labels.columns)
    list_columns = [column for column in inputs if column.kind == "list"]
    lists = read_lists(list_columns, kept, time.time_R, now_us + DAY_US)
    draft.left_out |= lists.left_out
    draft.warnings += lists.warnings
    _add_features(draft, names, kept, lists)
    for column in labels.others:
        if column.name not in draft.left_out:
            draft.warnings.append(f"{column.name}: a column of 0 and 1 that is a feature here; is it a label?")
    _warn(draft)
    if not draft.features:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in draft.left_out.items())
        raise ConfigError(f"{log.url}: no column is left to be a feature. {reasons}")
    return draft


class _Names:
    """Turns names of columns into names of features, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, column: str) -> str:
        """Returns a name of letters, digits and underscores that is not taken yet."""
        name = re.sub(r"\W", "_", column, flags=re.ASCII)
        if not name or name[0].isdigit():
            name = f"_{name}"
        while name in self._taken:
            name += "_2"
        self._taken.add(name)
        return name


def _entry(names: _Names, column: Column, **more: Any) -> dict[str, Any]:
    name = names.take(column.name)
    return {"name": name} | ({} if name == column.name else {"column": column.name}) | more


def _label_comment(column: Column) -> str:
    rate = float(column.present.cast("float64").to_numpy().mean())
    missing = f", {column.null_share:.1%} not known" if column.null_share else ""
    return f"{rate:.2%} are 1{missing}"


def _left_out_first(sample: Sample) -> dict[str, str]:
    """Returns reasons for columns that cannot be read, whatever they hold."""
    reasons: dict[str, str] = {}
    for name, kinds in sample.conflicts.items():
        reasons[name] = f"its type differs from file to file: {kinds}"
    for name in sample.columns:
        if "${" in name:
            reasons[name] = "an experiment file would read its name as an interpolation"
        elif "." in name:
            reasons[name] = "a dot in a name means a field of a struct; rename it"
    return reasons


def _without_leaks(draft: Draft, columns: Sequence[Column], labels: Sequence[Column]) -> list[Column]:
    kept: list[Column] = []
    for column in columns:
        reasons: list[str] = []
        # A group with many ids is never left out: users who always or never click are no leak.
        if column.kind in ("integer", "number", "string", "boolean") and column is not draft.group:
            reasons = [reason for reason in (leak(column, label) for label in labels) if reason]
        if reasons and not column.is_constant:
            draft.left_out[column.name] = f"it knows a label: {'; '.join(reasons)}"
            draft.warnings.append(f"{column.name}: leaky, so left out: {'; '.join(reasons)}")
        else:
            kept.append(column)
    return kept


def _add_features(draft: Draft, names: _Names, scalars: Sequence[Column], lists: Lists) -> None:
    tables = _shared_tables(scalars, lists)
    features: dict[str, DraftFeature] = {}
    referenced = {owner.name for owner in lists.owners.values()}
    for column in scalars:
        use = scalar_kind(column, column.name in referenced)
        if not use.kind:
            draft.left_out[column.name] = use.reason
            continue
        entry = _entry(names, column, kind=use.kind)
        if use.kind == "categorical":
            entry["rows"] = table_rows(tables.get(column.name, column.ids))
        elif use.transform != "none":
            entry["transform"] = use.transform
        if use.missing:
            entry["missing"] = use.missing
        features[column.name] = DraftFeature(entry, use.reason, column)
    draft.features += features.values()
    for column in lists.single:
        ids, comment = _ids_of(column, lists, tables, features)
        draft.features.append(DraftFeature(_entry(names, column, kind="multi_valued", **ids), comment, column))
    for column, width in lists.vectors:
        entry = _entry(names, column, kind="vector", width=width)
        draft.features.append(DraftFeature(entry, "all lists are equally long", column))
    for name, fields in lists.sequences.items():
        draft.features.append(_sequence(names, name, fields, lists, tables, features))


def _shared_tables(scalars: Sequence[Column], lists: Lists) -> dict[str, int]:
    """Returns the number of ids of each scalar column, with those of the lists that share its table."""
    ids = {column.name: column.ids for column in scalars}
    columns = [*lists.single, *(column for fields in lists.sequences.values() for column in fields)]
    for column in columns:
        owner = lists.owners.get(column.name)
        if owner is not None:
            # Not their sum, because the ids of a list are mostly those of the column whose table it shares.
            ids[owner.name] = max(ids[owner.name], column.ids)
    return ids


def _ids_of(
    column: Column, lists: Lists, tables: dict[str, int], features: dict[str, DraftFeature]
) -> tuple[dict[str, Any], str]:
    """Returns the table of a list column, and a comment."""
    owner = lists.owners.get(column.name)
    if owner is not None and owner.name in features:
        feature = features[owner.name]
        return {"rows": table_rows(tables[owner.name]), "table": feature.name}, f"its ids are those of {owner.name}"
    return {"rows": table_rows(column.ids)}, table_comment(column, column.ids)


def _sequence(
    names: _Names,
    name: str,
    columns: Sequence[Column],
    lists: Lists,
    tables: dict[str, int],
    features: dict[str, DraftFeature],
) -> DraftFeature:
    fields: list[tuple[dict[str, Any], str]] = []
    field_names = _Names()
    longest = 1
    for column in columns:
        longest = max(longest, int(column.values.value_lengths().to_numpy(zero_copy_only=False).max()))
        short = column.name.removeprefix(f"{name}_")
        entry: dict[str, Any] = {"name": field_names.take(short), "column": column.name}
        if is_number_list(column):
            fields.append((entry | field_entry(column), ""))
        else:
            ids, comment = _ids_of(column, lists, tables, features)
            fields.append((entry | ids, comment))
    entry = {"name": names.take(name), "kind": "sequence", "max_length": min(longest, MOST_EVENTS)}
    if name in lists.times:
        entry["times"] = lists.times[name]
    return DraftFeature(entry, f"the longest of the sample has {longest} events", columns[0], tuple(fields))


def _warn(draft: Draft) -> None:
    """Warns of columns that say nothing or little."""
    for column in draft.sample.columns.values():
        if column.name == draft.time.column:
            continue
        if column.is_constant:
            draft.warnings.append(f"{column.name}: constant in the sample")
        elif column.null_share and column.name not in [entry.get("column", entry["name"]) for entry, _ in draft.labels]:
            draft.warnings.append(f"{column.name}: {column.null_share:.1%} of rows have no value")
    if draft.log.path_columns:
        listed = ", ".join(draft.log.path_columns)
        draft.warnings.append(
            f"{listed}: columns in the folders' names, which were not looked at; they may be features"
        )
