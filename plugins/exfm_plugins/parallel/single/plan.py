"""One process: fused tables on one device."""

from __future__ import annotations

from typing import ClassVar

from exfm.parallel import SingleProcessPlan


class Single(SingleProcessPlan):
    """One process on one device: every table collection becomes one fused FBGEMM call."""

    name: ClassVar[str] = "single"
    is_default: ClassVar[bool] = True

    class Config(SingleProcessPlan.Config):
        """Fields of `single`."""
