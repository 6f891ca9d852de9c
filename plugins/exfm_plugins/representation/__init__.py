"""Representation: the student's trunk learns what the teacher's embedding says of an example."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_transfer_strategies() -> list[exfm.LazyComponent]:
    """Offers `representation`."""
    return [exfm.LazyComponent("representation", "exfm_plugins.representation.strategy:Representation")]
