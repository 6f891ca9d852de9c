"""What data sources share: large text files read by row number, and histories that see strictly earlier events.

Everything here is public, and none of it is a component.
"""

from __future__ import annotations

from exfm.sources.delimited import DelimitedFile
from exfm.sources.histories import Histories, list_column

__all__ = ["DelimitedFile", "Histories", "list_column"]
