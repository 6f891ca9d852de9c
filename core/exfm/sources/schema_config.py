"""The schema of a stream as a part of its source's Config."""

from __future__ import annotations

from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.schema import FeatureSchema


class SchemaConfig(ComponentConfig, FeatureSchema):
    """Base of the Config of a source whose schema is given in the experiment file, next to the source's own fields."""

    def feature_schema(self) -> FeatureSchema:
        """The schema alone."""
        return FeatureSchema(**{name: getattr(self, name) for name in FeatureSchema.model_fields})
