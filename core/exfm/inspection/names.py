"""Lists words in the names of columns that hint at their meaning."""

from __future__ import annotations

import re
from collections.abc import Sequence

TIME = ("time", "timestamp", "ts", "at", "date", "datetime", "epoch", "when", "dt")
EVENT = ("event", "shown", "impression", "request", "served", "exposure")
EXAMPLE = ("example", "impression", "row", "event", "sample", "request", "log", "record", "uuid", "id", "key", "index")
USER = ("user", "uid", "member", "customer", "visitor", "viewer", "person", "account", "reader", "student", "client")
WEAK_USER = ("device", "session", "cookie", "household", "profile", "ip")
ITEM = (
    "item", "ad", "article", "video", "product", "movie", "creative", "content", "doc", "document", "post", "listing",
    "song", "track", "news", "sku", "asin", "goods", "problem", "book", "pin", "photo", "game", "app", "offer",
)  # fmt: skip
LABEL = (
    "click", "clicked", "label", "target", "conversion", "converted", "convert", "purchase", "purchased", "bought",
    "buy", "order", "ordered", "like", "liked", "install", "installed", "correct", "y", "outcome", "reward", "follow",
    "share", "shared", "comment", "view", "watched", "finish", "finished", "positive", "ctr", "cvr", "subscribe",
)  # fmt: skip
NUMBER = (
    "count", "counts", "cnt", "num", "n", "price", "cost", "bid", "age", "amount", "score", "rank", "position", "dwell",
    "duration", "length", "seconds", "secs", "ms", "s", "distance", "pct", "percent", "ratio", "rate", "total", "avg",
    "mean", "size", "days", "hours", "minutes", "clicks", "views", "impressions", "weight", "height", "width", "value",
    "gap", "elapsed", "step", "balance", "income", "rating",
)  # fmt: skip
ID = ("id", "ids", "code", "type", "category", "class", "kind", "hash", "key", "zip", "name", *USER, *WEAK_USER, *ITEM)
HISTORY = ("history", "hist", "seq", "sequence", "past", "recent", "last", "previous", "clicked", "viewed", "watched")
AGE = ("age", "ago", "gap", "elapsed")

_FILLER = frozenset({"id", "ids", "list", "of", "the", *HISTORY})


def words(name: str) -> list[str]:
    """Splits a name into lower-case words: at capitals, digits and punctuation; a plural s is left out."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return list(map(_singular, re.findall(r"[a-z]+", split.lower())))


def hints(name: str, vocabulary: Sequence[str]) -> bool:
    """Tells whether a name has a word of a vocabulary."""
    listed = {_singular(word) for word in vocabulary}
    return any(word in listed for word in words(name))


def related(left: str, right: str) -> bool:
    """Tells whether two names share a word that says something, as ``history_articles`` and ``article_id`` do."""
    return bool((set(words(left)) & set(words(right))) - _FILLER)


def _singular(word: str) -> str:
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        return word.removesuffix("s")
    return word
