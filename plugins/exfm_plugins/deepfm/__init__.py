"""DeepFM: a factorization machine and an MLP over the same tokens (arXiv 1703.04247)."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers `deepfm`."""
    return [exfm.LazyComponent("deepfm", "exfm_plugins.deepfm.model:DeepFM")]
