"""Two towers: one vector of the user, one of the item, and their elementwise product, for retrieval."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `two_tower`."""
    return [exfm.LazyComponent("two_tower", "exfm_plugins.two_tower.model:TwoTower")]
