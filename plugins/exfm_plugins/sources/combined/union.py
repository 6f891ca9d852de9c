"""Joins the schemas of several products by the names of features, and says which columns of a product they are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError

from exfm.components import suggestion
from exfm.schema import (
    BucketizedFeature,
    CategoricalFeature,
    CrossedFeature,
    DenseFeature,
    Feature,
    FeatureSchema,
    Label,
    MultiValuedFeature,
    SequenceFeature,
    SequenceField,
    VectorFeature,
)

EXAMPLE_ID, EVENT_TIME, GROUP, DOMAIN, WEIGHT = "example_id", "event_time", "group", "domain", "weight"
_COMMON = (EXAMPLE_ID, EVENT_TIME, GROUP, DOMAIN, WEIGHT)
_DOMAIN_ROWS = 4096
"""Rows of the table of products: many, because they are hashed, and no two should share a row."""

Filling = Literal["null", "empty_list", "one"]
"""What a row of a product has in a column that the product lacks."""

_Named = TypeVar("_Named", bound=Feature | Label)


@dataclass(frozen=True)
class Union:
    """The joined schema.

    Attributes:
        schema: its columns have the names of the features.
        columns: for each product, its column by the joined schema's column.
        fillings: what stands in a column of the joined schema where a product lacks it.
    """

    schema: FeatureSchema
    columns: Mapping[str, Mapping[str, str]]
    fillings: Mapping[str, Filling]


def join_schemas(schemas: Mapping[str, FeatureSchema], apart: Collection[str]) -> Union:
    """Joins schemas.

    Args:
        schemas: by product.
        apart: names of features, labels and tables that each product has for itself, as PRODUCT_NAME.

    Raises:
        ValueError: products disagree on a feature or label of a name, or on the rows of a table; a dense feature or a
            group is not in all of them; ``apart`` has a name that none of them has.
    """
    _check_apart(schemas, apart)
    features: dict[str, _Member[Feature]] = {}
    labels: dict[str, _Member[Label]] = {}
    columns: dict[str, dict[str, str]] = {}
    for product, schema in schemas.items():
        renaming = _Renaming(product, frozenset(apart))
        columns[product] = _common_columns(schema)
        for feature in schema.features:
            renamed = renaming.feature(feature)
            _add(features, product, renamed)
            columns[product] |= dict(zip(_columns(renamed), _columns(feature), strict=True))
        for label in schema.labels:
            renamed_label = renaming.label(label)
            _add(labels, product, renamed_label)
            columns[product] |= dict(zip(_columns(renamed_label), _columns(label), strict=True))
    for name, member in features.items():
        _check_everywhere(name, member, schemas)
    for name, label_member in labels.items():
        if len(label_member.products) < len(schemas):
            # Rows of the other products have no true probability, and a column of it has to be complete.
            labels[name] = _Member(label_member.value.model_copy(update={"oracle": ""}), label_member.products)
    has_group = _has_group(schemas)
    domain = CategoricalFeature(name=DOMAIN, rows=_DOMAIN_ROWS)
    try:
        joined = FeatureSchema(
            group=GROUP if has_group else "",
            domain=DOMAIN,
            weight=WEIGHT if any(schema.weight for schema in schemas.values()) else "",
            features=(*(member.value for member in features.values()), domain),
            labels=tuple(member.value for member in labels.values()),
        )
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"combined: {problem}. `apart: [NAME]` gives each product its own") from error
    fillings: dict[str, Filling] = {WEIGHT: "one"}
    for value in (*joined.features, *joined.labels):
        has_lists = isinstance(value, SequenceFeature | MultiValuedFeature)
        fillings |= dict.fromkeys(_columns(value), "empty_list" if has_lists else "null")
    return Union(joined, columns, fillings)


def narrow(schema: FeatureSchema, product: str, apart: Collection[str], needed: FeatureSchema) -> FeatureSchema:
    """Returns the part of a product's schema that a part of the joined schema needs."""
    renaming = _Renaming(product, frozenset(apart))
    features = {feature.name for feature in needed.features}
    labels = {label.name for label in needed.labels}
    return schema.model_copy(
        update={
            "features": tuple(f for f in schema.features if renaming.name(f.name) in features),
            "labels": tuple(label for label in schema.labels if renaming.name(label.name) in labels),
        }
    )


@dataclass(frozen=True)
class _Member(Generic[_Named]):
    """A feature or label of the joined schema, and the products that have it."""

    value: _Named
    products: tuple[str, ...]


@dataclass(frozen=True)
class _Renaming:
    """Gives the features and labels of a product the names, tables and columns of the joined schema."""

    product: str
    apart: frozenset[str]

    def name(self, name: str) -> str:
        return f"{self.product}_{name}" if name in self.apart else name

    def feature(self, feature: Feature) -> Feature:
        name = self.name(feature.name)
        if isinstance(feature, SequenceFeature):
            fields: list[SequenceField] = []
            for field in feature.fields:
                table = self.name(field.table) if field.table else ""
                fields.append(field.model_copy(update={"column": f"{name}.{field.name}", "table": table}))
            times = feature.times
            if times is not None:
                times = times.model_copy(update={"column": f"{name}.times"})
            return feature.model_copy(update={"name": name, "fields": tuple(fields), "times": times})
        if isinstance(feature, CrossedFeature):
            crossed = tuple(map(self.name, feature.of))
            pairs = zip(feature.parts, crossed, strict=True)
            parts = tuple(read.model_copy(update={"column": column}) for read, column in pairs)
            return feature.model_copy(update={"name": name, "of": crossed, "parts": parts})
        if isinstance(feature, DenseFeature | VectorFeature | BucketizedFeature):
            return feature.model_copy(update={"name": name, "column": ""})
        if isinstance(feature, MultiValuedFeature) and feature.weights is not None:
            feature = feature.model_copy(update={"weights": f"{name}.weights"})
        table = self.name(feature.table_name)
        return feature.model_copy(update={"name": name, "column": "", "table": "" if table == name else table})

    def label(self, label: Label) -> Label:
        name = self.name(label.name)
        oracle = f"{name}.oracle" if label.oracle else ""
        return label.model_copy(update={"name": name, "column": "", "oracle": oracle})


def _columns(value: Feature | Label) -> list[str]:
    """Lists the columns of a feature or label, in the same order before and after renaming."""
    columns = list(value.source_columns)
    if isinstance(value, Label) and value.oracle:
        columns.append(value.oracle)
    return columns


def _common_columns(schema: FeatureSchema) -> dict[str, str]:
    columns = {EXAMPLE_ID: schema.example_id, EVENT_TIME: schema.event_time, GROUP: schema.group, WEIGHT: schema.weight}
    return {name: column for name, column in columns.items() if column}


def _add(members: dict[str, _Member[_Named]], product: str, value: _Named) -> None:
    """Adds a feature or label, or compares it with that of another product."""
    name = value.name
    if name in _COMMON:
        raise ValueError(
            f"combined: {product} has a feature or label {name!r}, which is a column of the combined stream; rename "
            f"it, or set apart: [{name}]"
        )
    before = members.get(name)
    if before is None:
        members[name] = _Member(value, (product,))
        return
    if before.value != value:
        key, first, second = _difference(before.value, value)
        raise ValueError(
            f"combined: {name!r} is not the same in {before.products[0]} and {product}: {key} is {first!r} and "
            f"{second!r}. Make both equal, or set apart: [{name}], so that each product has its own"
        )
    members[name] = _Member(value, (*before.products, product))


def _difference(before: BaseModel, now: BaseModel) -> tuple[str, object, object]:
    """Returns the first key whose value differs, and both values."""
    first, second = before.model_dump(mode="json"), now.model_dump(mode="json")
    for key in first | second:
        if first.get(key) != second.get(key):
            return key, first.get(key), second.get(key)
    raise AssertionError("equal")


def _check_everywhere(name: str, member: _Member[Feature], schemas: Mapping[str, FeatureSchema]) -> None:
    """Refuses a dense feature that a product lacks, because a number that is missing has no value to stand in."""
    missing = [product for product in schemas if product not in member.products]
    if missing and isinstance(member.value, DenseFeature) and member.value.missing is None:
        raise ValueError(
            f"combined: the dense feature {name!r} of {member.products[0]} is not in {missing[0]}, and a number cannot "
            "be missing. Add it there, set its `missing`, or leave it out"
        )


def _has_group(schemas: Mapping[str, FeatureSchema]) -> bool:
    lacking = [product for product, schema in schemas.items() if not schema.group]
    if lacking and len(lacking) < len(schemas):
        raise ValueError(
            f"combined: {lacking[0]} has no `group`, and another product has; name the users of all products, or none"
        )
    return not lacking


def _check_apart(schemas: Mapping[str, FeatureSchema], apart: Collection[str]) -> None:
    names: set[str] = set()
    for schema in schemas.values():
        names |= {*(value.name for value in (*schema.features, *schema.labels)), *schema.tables()}
    for name in apart:
        if name not in names:
            near = suggestion(name, names)
            raise ValueError(f"combined: apart: no product has a feature, label or table {name!r}.{near}")
