"""MLP: the plain deep model, the tokens side by side through linear layers."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `mlp`."""
    return [exfm.LazyComponent("mlp", "exfm_plugins.mlp.model:MLP")]
