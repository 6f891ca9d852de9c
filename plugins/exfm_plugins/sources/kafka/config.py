"""Defines the fields of the source `kafka`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, Self

import pyarrow as pa
from pydantic import AwareDatetime, Field, model_validator

from exfm.sources import Duration, SchemaConfig, TimeUnit, microseconds, value_types
from exfm_plugins.sources.kafka.avro import AvroDecoder
from exfm_plugins.sources.kafka.options import OptionValue, check_options
from exfm_plugins.sources.kafka.values import Decoder, JsonDecoder

_1970 = datetime(1970, 1, 1, tzinfo=UTC)


class KafkaConfig(SchemaConfig):
    """Configures the topic, and the schema of its messages."""

    bootstrap_servers: str = Field(description="Addresses of brokers, such as broker-1:9092,broker-2:9092.")
    topic: str = Field(min_length=1, description="The topic.")
    time_unit: TimeUnit = Field(
        "ms", description="Unit of event_time since 1970, UTC; timestamp: ISO 8601 text, or Avro's timestamps."
    )
    format: Literal["json", "avro"] = Field("json", description="The format of a message's value.")
    strings: tuple[str, ...] = Field(
        (), description="Columns whose ids are strings, of format: json; other ids are whole numbers."
    )
    avro_schema: dict[str, Any] | None = Field(
        None, description="The schema by which values were written, a record, of format: avro."
    )
    schema_id: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="Values begin with Confluent's header of five bytes, with this id; they have none if left out.",
    )
    example_ids: Literal["column", "offset"] = Field(
        "column", description="column: example_id is a column; offset: an example is known by partition and offset."
    )
    start: AwareDatetime | None = Field(
        None, description="Where the stream begins; needed where the broker has removed messages."
    )
    out_of_orderness: Duration = Field(
        timedelta(0), description="How much earlier an event may be than an earlier event of its partition."
    )
    idle_partition: Duration = Field(
        timedelta(minutes=5),
        description="A partition without new messages for so long does not hold windows back.",
    )
    timeout: Duration = Field(
        timedelta(seconds=30), description="How long the brokers may not answer before it is an error."
    )
    options: dict[str, OptionValue] = Field(
        {}, description="Settings of the client (librdkafka), such as security.protocol: SASL_SSL."
    )
    options_file: str | None = Field(
        None, description="A file of further settings, name=value on each line, such as passwords."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_options(self.options)
        is_avro = self.format == "avro"
        if is_avro != (self.avro_schema is not None):
            raise ValueError(f"avro_schema: {'needed' if is_avro else 'not used'} with format: {self.format}")
        if not is_avro and self.schema_id is not None:
            raise ValueError("schema_id: not used with format: json")
        if is_avro and self.strings:
            raise ValueError("strings: not used with format: avro; the types are those of avro_schema")
        return self

    @property
    def start_us(self) -> int | None:
        """Returns the start in microseconds."""
        return None if self.start is None else microseconds(self.start - _1970)

    @property
    def value_columns(self) -> tuple[str, ...]:
        """Returns the columns that the value of a message has."""
        columns = self.feature_schema().columns
        if self.example_ids == "column":
            return columns
        return tuple(column for column in columns if column != self.example_id)

    def decoder(self, columns: Sequence[str]) -> Decoder:
        """Returns a decoder of some columns.

        Raises:
            ValueError: ``strings`` or ``avro_schema`` does not fit the schema.
        """
        if self.avro_schema is not None:
            return AvroDecoder(self.avro_schema, columns, self.schema_id)
        time_type = pa.timestamp("us", "UTC") if self.time_unit == "timestamp" else pa.int64()
        types = value_types(self.feature_schema(), self.strings, "kafka", time_type)
        return JsonDecoder(pa.schema([types.field(column) for column in columns]))
