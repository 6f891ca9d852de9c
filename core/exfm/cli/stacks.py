"""Lists the releases of torch, fbgemm and torchrec that fit together.

fbgemm is compiled against a minor release of torch: with any other its operators fail to load, or worse.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stack:
    """Names releases that are tested together; patch releases may differ."""

    torch: str
    fbgemm: str
    torchrec: str

    def minor(self, name: str) -> str:
        """Returns the minor release, such as ``2.13``, of ``torch``, ``fbgemm`` or ``torchrec``."""
        return minor_release(str(getattr(self, name)))


STACKS = (
    Stack("2.12.1", "1.7.0", "1.7.0"),
    Stack("2.13.0", "1.8.0", "1.8.0"),
    Stack("2.14.1", "1.9.0", "1.9.2"),
)
"""From the oldest to the newest. ``make test`` runs on the second; ``make test-matrix`` on the first and the last."""


def minor_release(version: str) -> str:
    """Shortens ``2.13.0+cpu`` to ``2.13``."""
    return ".".join(version.split(".")[:2])


def stack_of(torch_version: str) -> Stack | None:
    """Returns the stack that a release of torch belongs to; None where none is tested with it."""
    release = minor_release(torch_version)
    return next((stack for stack in STACKS if stack.minor("torch") == release), None)
