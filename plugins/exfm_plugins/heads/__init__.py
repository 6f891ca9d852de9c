"""Task heads: losses and predictions of labels that are not 0 or 1."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_task_heads() -> list[exfm.LazyComponent]:
    """Offers the built-in task heads."""
    return [
        exfm.LazyComponent("bins", "exfm_plugins.heads.bins.head:Bins"),
        exfm.LazyComponent("huber", "exfm_plugins.heads.huber.head:Huber"),
        exfm.LazyComponent("log_normal", "exfm_plugins.heads.log_normal.head:LogNormal"),
        exfm.LazyComponent("mse", "exfm_plugins.heads.mse.head:MSE"),
        exfm.LazyComponent("softmax", "exfm_plugins.heads.softmax.head:Softmax"),
    ]
