"""A single process with fused tables on a single device."""

from __future__ import annotations

from typing import ClassVar

from exfm.parallel import SingleProcessPlan


class Single(SingleProcessPlan):
    """Trains in a single process on a single device; every table collection becomes fused FBGEMM calls."""

    name: ClassVar[str] = "single"
    is_default: ClassVar[bool] = True

    class Config(SingleProcessPlan.Config):
        """Fields of `single`."""
