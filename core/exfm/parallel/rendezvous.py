"""How the processes that torchrun has started, or started again, find each other."""

from __future__ import annotations

import json
import time
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store

_POLL_S, _PATIENCE_S = 0.05, 600.0


def rendezvous_store(store: Store, rank: int, count: int) -> Store:
    """A part of a store that no earlier start of the same processes has written to.

    torchrun keeps one store when it starts all processes again after one has died, and since torch 2.13 the processes
    find in it where the dead ones listened, and dial them. The number of the start is no remedy, as machines may count
    differently. So each process leaves a word of this start; the first one lists the words it sees, until each
    process has found its own in the list, and its own word is the name of the part.

    Args:
        store: of all processes.
        rank: this one's number.
        count: how many there are.

    Raises:
        RuntimeError: not all processes have come within ten minutes.
    """
    word = uuid4().hex
    store.set(_hello(rank), word)
    words = [_hello(other) for other in range(count)]
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if rank == 0:
            if store.check(words):
                store.set("exfm/words", json.dumps([found.decode() for found in store.multi_get(words)]))
            if count == 1 or store.check([f"exfm/{word}/{other}" for other in range(1, count)]):
                return PrefixStore(word, store)
        elif store.check(["exfm/words"]):
            found = json.loads(store.get("exfm/words"))
            if len(found) == count and found[rank] == word:
                store.set(f"exfm/{found[0]}/{rank}", "here")
                return PrefixStore(found[0], store)
        time.sleep(_POLL_S)
    raise RuntimeError(f"of {count} processes not all have come within {_PATIENCE_S:.0f} s")


def _hello(rank: int) -> str:
    return f"exfm/word/{rank}"
