"""Chooses the inputs of a student, and the features that describe its users and items."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exfm.inspection.columns import Column
from exfm.inspection.draft import Draft, DraftFeature
from exfm.inspection.names import ITEM, hints
from exfm.mappings import names_of

_SMALL = 64
"""A context feature of a student has at most so many ids."""
_CONTEXT = 2
_DESCRIBES = 1.05
"""A feature describes an entity if each of the entity's ids has so many values of it, at most, on average."""


@dataclass(frozen=True)
class DraftModels:
    """Describes the inputs of a student and the states of its teacher.

    Attributes:
        student_features: names.
        states: features that describe an entity, by the entity's feature.
    """

    student_features: tuple[str, ...]
    states: dict[str, tuple[str, ...]]


def draft_models(draft: Draft) -> DraftModels:
    """Chooses a student of a few features, as can be served: user, item and small context."""
    categorical = [feature for feature in draft.features if feature.kind == "categorical"]
    user = next((feature for feature in categorical if feature.column is draft.group), None)
    item = _item(draft, [feature for feature in categorical if feature is not user], user)
    entities = [feature for feature in (user, item) if feature is not None]
    states: dict[str, tuple[str, ...]] = {}
    for entity in entities:
        described = [entity.name]
        for feature in draft.features:
            if feature in entities or feature.kind == "multi_valued":
                continue
            if feature.kind == "sequence":
                if entity is user:
                    described.append(feature.name)
            elif feature.kind == "categorical" and _describes(feature.column, entity.column):
                described.append(feature.name)
        states[entity.name] = tuple(described)
    names = names_of(entities)
    context = [feature for feature in categorical if feature not in entities and feature.column.ids <= _SMALL]
    names += names_of(context[:_CONTEXT])
    if not names:
        scalar = [feature for feature in draft.features if feature.kind != "sequence"] or draft.features
        names = names_of(scalar[: max(1, len(scalar) // 2)])
    return DraftModels(tuple(names), states)


def _item(draft: Draft, candidates: list[DraftFeature], user: DraftFeature | None) -> DraftFeature | None:
    """Finds the feature of the item that is shown: by its name or a history of it, or that with the most ids."""
    tables = {entry.get("table") for feature in draft.features for entry, _ in feature.fields}
    items = [feature for feature in candidates if feature.name in tables or hints(feature.column.name, ITEM)]
    if not items:
        items = [feature for feature in candidates if feature.column.ids > _SMALL]
    if user is not None:
        items = [feature for feature in items if not _describes(feature.column, user.column)]
    return max(items, key=lambda feature: feature.column.ids, default=None)


def _describes(column: Column, entity: Column) -> bool:
    """Tells whether the value of a column follows from an entity's id, by the ids with several rows."""
    ids, values = entity.codes, column.codes
    repeated = np.bincount(ids + 1)[ids + 1] > 1
    if not repeated.any():
        return False
    pairs = np.unique(np.stack([ids[repeated], values[repeated]]), axis=1).shape[1]
    return bool(pairs <= _DESCRIBES * np.unique(ids[repeated]).size)
