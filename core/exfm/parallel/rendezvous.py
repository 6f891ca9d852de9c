"""Rendezvous of the processes that torchrun starts, or starts again after a failure."""

from __future__ import annotations

import json
import time
from uuid import uuid4

from torch.distributed.distributed_c10d import PrefixStore, Store

_POLL_S, _PATIENCE_S = 0.05, 600.0
"""Seconds between two looks at the store, and seconds after which a process gives up."""


def rendezvous_store(store: Store, rank: int, count: int) -> Store:
    """Returns a prefix of a store to which no earlier start of the same processes has written.

    torchrun keeps its store when it starts all processes again after a process has died, and since torch 2.13 the
    processes read in it the addresses of the dead processes. The number of the start is no remedy, as machines may
    count differently. So each process writes a word of this start; rank 0 lists the words that it sees, until each
    process has read its word in the list. Rank 0's word is the prefix.

    Args:
        store: of all processes.
        rank: the number of this process.
        count: the number of processes.

    Raises:
        RuntimeError: not all processes have come within ten minutes.
    """
    word = uuid4().hex
    store.set(_hello(rank), word)
    hellos = list(map(_hello, range(count)))
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        if rank == 0:
            # Again in each round: a word may be of an earlier start until its process overwrites it.
            if store.check(hellos):
                store.set("exfm/words", json.dumps([data.decode() for data in store.multi_get(hellos)]))
            if count == 1 or store.check([f"exfm/{word}/{other}" for other in range(1, count)]):
                return PrefixStore(word, store)
        elif store.check(["exfm/words"]):
            words = json.loads(store.get("exfm/words"))
            # The list may be of an earlier start, in which this process had another word.
            if len(words) == count and words[rank] == word:
                store.set(f"exfm/{words[0]}/{rank}", "here")
                return PrefixStore(words[0], store)
        time.sleep(_POLL_S)
    raise RuntimeError(f"of {count} processes not all have come within {_PATIENCE_S:.0f} s")


def _hello(rank: int) -> str:
    return f"exfm/word/{rank}"
