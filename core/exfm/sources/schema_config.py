"""The schema of a stream as a part of its source's Config."""

from __future__ import annotations

from typing import Self

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.schema import FeatureSchema


class SchemaConfig(ComponentConfig, FeatureSchema):
    """Base of the Config of a source whose schema is given in the experiment file, next to the source's own fields."""

    def feature_schema(self) -> FeatureSchema:
        """The schema alone."""
        return FeatureSchema.model_construct(**{name: getattr(self, name) for name in FeatureSchema.model_fields})

    def with_schema(self, schema: FeatureSchema) -> Self:
        """The same config with a part of its schema."""
        return self.model_copy(update={name: getattr(schema, name) for name in FeatureSchema.model_fields})
