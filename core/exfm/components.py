"""What a component is built with: its config, its inputs, nested components.

The names of this module, which the stub beside it lists, are imported on first use, because a data source needs some of
them and not torch.
"""

from __future__ import annotations

from exfm.exports import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
