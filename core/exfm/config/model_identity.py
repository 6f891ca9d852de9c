"""Describes the identity of a model: all that its committed windows depend on.

A model is its own section of the file, the part of the stream that it reads, and its teachers. Features and labels that
it does not read are not part of it, nor is the length of the stream: a run's folder takes them as growth.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from exfm.config.checks import Arm, filter_columns
from exfm.config.component_field import ComponentSpec
from exfm.config.loading import Experiment
from exfm.config.run_files import CONTROL_SUFFIX
from exfm.interfaces.data_source import DataSource
from exfm.interfaces.schema import FeatureSchema, Label, rows_may_become
from exfm.mappings import without
from exfm.redaction import same_but_for_credentials
from exfm.sources import SchemaConfig

_FREE = re.compile(
    r"model\.gate(\..*)?|teachers\.[^.]+\.at"
    r"|model\.optimizer\.(dense\.(lr|weight_decay|warmup|schedule(\..*)?|clip_norm|ema)|tables\.(lr|eps))"
)
"""Matches keys that may change while a model goes on, because committed windows do not depend on them."""

_LONGEST_VALUE = 60  # characters of a value in a message: a whole section would hide the sentence around it


@dataclass(frozen=True)
class Difference:
    """Describes a key whose value differs between two identities of a model.

    Attributes:
        model: the model's name under ``models``.
        path: the key path inside the identity.
        reason: why the model cannot go on with the change; empty where the two values say it.
    """

    model: str
    path: str
    before: Any
    now: Any
    reason: str = ""

    @property
    def is_free(self) -> bool:
        """Tells whether the model may go on with the change."""
        return bool(_FREE.fullmatch(self.path))

    @property
    def is_of_all_models(self) -> bool:
        """Tells whether all models of the file have the key, so that another name for the model would not help."""
        return self.path.startswith(("seed", "stream.window", "stream.chunk_rows", "stream.source", "stream.columns"))

    @property
    def key(self) -> str:
        """Returns the key path in the experiment file."""
        section, below = self.path.partition(".")[::2]
        return f"models.{self.model}.{below}" if section == "model" else self.path

    def __str__(self) -> str:
        if self.path.startswith("teachers.") and self.path.endswith(".version"):
            return f"its teacher {self.path.split('.')[1]!r} was snapshot {self.before} and is now {self.now}"
        if self.path.startswith("teachers."):
            return f"its teacher {self.path.split('.')[1]!r} is another model than the one it has learned from"
        if self.reason:
            return f"{self.key}: {self.reason}"
        return f"{self.key} was {_short(self.before)} and is now {_short(self.now)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def model_identities(
    experiment: Experiment, resolved: Mapping[str, Any], frozen: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Describes the identity of each model and control, by name, of JSON's types and without secrets.

    Args:
        resolved: ``experiment.as_dict()``.
        frozen: the versions of the frozen teachers, by name.
    """
    identities: dict[str, dict[str, Any]] = {}
    digests: dict[str, Any] = {}
    for name, lender in experiment.lenders.items():
        digests[name] = lender.digest
        if name in frozen:
            digests[name] = {"model": lender.digest, "version": frozen[name], "at": lender.at}
    # Teachers come before their students.
    for arm in experiment.arms:
        identities[arm.name] = _identity(experiment, arm, resolved, digests)
        digests[arm.name] = identity_digest(identities[arm.name])
    return identities


def _identity(
    experiment: Experiment, arm: Arm, resolved: Mapping[str, Any], digests: Mapping[str, Any]
) -> dict[str, Any]:
    """Describes a model's identity, from the digests or snapshots of its teachers, by name; others are in files."""
    section = arm_section(arm, resolved)
    del section["keep"]  # committed windows do not depend on how long they stay
    section["supervision"] = without(section["supervision"], "store")
    for key in ("heads", "compile"):  # left out where they are not used, as in models of before there were any
        if not section[key]:
            del section[key]
    if section["late_labels"] == "each":  # as in models of before there was another value
        del section["late_labels"]
    teachers: dict[str, Any] = {}
    for name in arm.teachers:
        teachers[name] = digests[name] if name in digests else resolved["teachers"][name]
    return {
        "seed": experiment.config.seed,
        "model": section,
        "stream": _stream_identity(experiment, arm, resolved["stream"]),
        "teachers": teachers,
    }


def arm_section(arm: Arm, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section of a model, or of a control, whose section has no transfer and no inputs.

    Args:
        resolved: ``experiment.as_dict()``.
    """
    section = dict(resolved["models"][arm.base])
    if arm.is_control:
        section |= arm.config.model_dump(mode="json", include={"transfer", "inputs", "supervision"})
    del section["control"]
    return section


def _stream_identity(experiment: Experiment, arm: Arm, stream: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the windows of the stream, and the columns that a model reads."""
    schema = experiment.schema
    features: dict[str, Any] = {}
    conditions: dict[str, Any] = {}
    for feature in schema.features:
        if arm.config.features is None or feature.name in arm.config.features:
            features[feature.name] = feature.model_dump(mode="json")
        elif feature.name in arm.config.where:
            conditions[feature.name] = feature.model_dump(mode="json")
    columns = filter_columns(schema)
    return {
        "window": stream["window"],
        "chunk_rows": stream["chunk_rows"],
        "source": _source_identity(type(experiment.source), experiment.source.config, stream["source"]),
        "columns": {
            "example_id": schema.example_id,
            "event_time": schema.event_time,
            "group": schema.group,
            "weight": schema.weight or None,
            "domain": schema.domain if schema.domain in map(columns.get, arm.config.where) else "",
        },
        "features": features,
        "order": list(features),  # because the order of tokens is that of the schema
        "where": conditions,
        "labels": {label.name: _label_identity(label) for label in schema.labels if label.name in arm.tasks},
    }


def _source_identity(component: type[DataSource], config: Any, written: Mapping[str, Any]) -> dict[str, Any]:
    """Describes the fields of a source that its rows depend on, and those of sources inside it.

    Args:
        written: the source as ``experiment.as_dict()`` has it.
    """
    not_bound = set(component.free_fields)
    if isinstance(config, SchemaConfig):
        not_bound |= FeatureSchema.model_fields.keys()  # the columns that a model reads are listed with its features
    fields = without(written, *not_bound)
    return {key: _bound_fields(getattr(config, key, None), value) for key, value in fields.items()}


def _bound_fields(value: Any, written: Any) -> Any:
    """Describes a field of a source, which may hold sources, by name or in a list."""
    if isinstance(value, ComponentSpec) and issubclass(value.component, DataSource):
        return _source_identity(value.component, value.config, written)
    if isinstance(value, Mapping) and isinstance(written, Mapping):
        return {key: _bound_fields(value.get(key), below) for key, below in written.items()}
    if isinstance(value, tuple) and isinstance(written, list):
        return [_bound_fields(*pair) for pair in zip(value, written, strict=True)]
    return written


def _label_identity(label: Label) -> dict[str, Any]:
    """Describes a label; a binary label as before there were other kinds."""
    fields = label.model_dump(mode="json")
    return without(fields, "kind", "classes", "minimum") if label.kind == "binary" else fields


def identity_digest(identity: Mapping[str, Any]) -> str:
    """Computes the checksum of an identity, without the keys that may change while a model goes on."""
    kept: dict[str, Any] = {}
    for path, value in _leaves(identity):
        grows = path.startswith("stream.") and path.endswith(".rows")
        # A field that is not set counts as absent, so that further fields leave the models of older runs as they are.
        if value is not None and not grows and not _FREE.fullmatch(path):
            kept[path] = value
    return xxhash.xxh3_128_hexdigest(json.dumps(kept, sort_keys=True).encode())


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the path and the value of each key that holds no further keys."""
    if isinstance(value, Mapping) and value:
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{path}.{number}")
    else:
        yield path, value


def differences(arm: Arm, before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Difference]:
    """Yields each key whose value differs; a table that has grown by as much as it may is no difference."""
    for path, old, new, reason in _differences(before, now, ""):
        yield Difference(arm.name.removesuffix(CONTROL_SUFFIX), path, old, new, reason)


def _differences(before: Any, now: Any, path: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Yields path, both values and a reason; lists of different lengths are compared as a whole."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*now, *before]):  # a set that keeps the order of the file
            old, new = before.get(key), now.get(key)
            below = f"{path}.{key}" if path else str(key)
            if key == "rows" and below.startswith("stream.") and isinstance(old, int) and isinstance(new, int):
                refused = rows_may_become(old, new, now.get("ids", "row"))
                if refused:
                    yield below, old, new, refused
            else:
                yield from _differences(old, new, below)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, pair in enumerate(zip(before, now, strict=True)):
            yield from _differences(*pair, f"{path}.{number}")
    elif not same_but_for_credentials(before, now):
        yield path, before, now, ""
