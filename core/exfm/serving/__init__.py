"""Exports models, predicts with exports, and predicts a stream with a snapshot.

The names of this package, which the stub beside it lists, are imported on first use, because commands that read a run's
folder need its modules and not torch.
"""

from __future__ import annotations

from exfm.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
