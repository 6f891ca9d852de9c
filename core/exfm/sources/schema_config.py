"""Defines a Config that includes the schema of the stream."""

from __future__ import annotations

from typing import Any, Self

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.schema import FeatureSchema


class SchemaConfig(ComponentConfig, FeatureSchema):
    """Base of the Config of a source whose schema is written in the experiment file, next to the source's fields."""

    def feature_schema(self) -> FeatureSchema:
        """Returns the schema without the source's fields."""
        # Without validation: the values were validated as fields of this Config.
        return FeatureSchema.model_construct(**_schema_values(self))

    def with_schema(self, schema: FeatureSchema) -> Self:
        """Copies the config with another schema, such as a selection of its features."""
        return self.model_copy(update=_schema_values(schema))


def _schema_values(schema: FeatureSchema) -> dict[str, Any]:
    """Returns the values of the schema's fields, without those of a derived class."""
    return {name: getattr(schema, name) for name in FeatureSchema.model_fields}
