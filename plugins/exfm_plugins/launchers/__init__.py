"""Launchers: where the jobs of an experiment run."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_launchers() -> list[exfm.LazyComponent]:
    """Offers the built-in launchers."""
    return [
        exfm.LazyComponent("local", "exfm_plugins.launchers.local.launcher:Local"),
    ]
