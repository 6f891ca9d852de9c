"""exfm: external distillation for recommendation, from a foundation model to the models that are served.

Exports every name that a plugin or a script needs; the stub beside this file lists them. A name is imported when it is
first used: to import all of them takes seconds, because of torch, and no command waits for torch that does not need it.
"""

from __future__ import annotations

from exfm.exports import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(__name__, __file__)
