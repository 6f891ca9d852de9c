"""Helps to write data sources: schemas in YAML, times in any unit, JSON, large text files, Parquet files,
histories.

All names are public; none is a component.
"""

from __future__ import annotations

from exfm.interfaces.data_source import (
    BAD_ROW,
    ROW_NUMBER,
    NeededRows,
    Origin,
    Shard,
    StreamPart,
    TimeRange,
    Window,
    mark_bad_rows,
    slice_rows,
)
from exfm.interfaces.download import Checksum, Download, RemoteFile
from exfm.interfaces.duration import Duration, microseconds
from exfm.sources.columns import check_time_type
from exfm.sources.delimited import DelimitedFile
from exfm.sources.files import list_files
from exfm.sources.histories import Histories, list_column
from exfm.sources.ids import example_ids, place_ids
from exfm.sources.json_objects import BadObjectError, parse_objects, read_objects
from exfm.sources.row_groups.files import RowGroupFiles
from exfm.sources.row_groups.footers import Footer, Footers, read_columns, read_footer
from exfm.sources.row_groups.order import RowGroup, StreamFile
from exfm.sources.row_groups.source import RowGroupSource
from exfm.sources.schema_config import SchemaConfig
from exfm.sources.times import YEAR_9999_US, TimeUnit, column_times, to_microseconds
from exfm.sources.unpacking import limited
from exfm.sources.value_types import value_types
from exfm.splitmix import splitmix64

__all__ = [
    "BAD_ROW",
    "ROW_NUMBER",
    "YEAR_9999_US",
    "BadObjectError",
    "Checksum",
    "DelimitedFile",
    "Download",
    "Duration",
    "Footer",
    "Footers",
    "Histories",
    "NeededRows",
    "Origin",
    "RemoteFile",
    "RowGroup",
    "RowGroupFiles",
    "RowGroupSource",
    "SchemaConfig",
    "Shard",
    "StreamFile",
    "StreamPart",
    "TimeRange",
    "TimeUnit",
    "Window",
    "check_time_type",
    "column_times",
    "example_ids",
    "limited",
    "list_column",
    "list_files",
    "mark_bad_rows",
    "microseconds",
    "parse_objects",
    "place_ids",
    "read_columns",
    "read_footer",
    "read_objects",
    "slice_rows",
    "splitmix64",
    "to_microseconds",
    "value_types",
]
