"""Reads the released files: reviews of 2014, 2018 and 2023, and what is known of items.

Legend: N reviews in time order, I items.
"""

from __future__ import annotations

import ast
import gzip
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from exfm.sources import BadObjectError, limited, parse_objects

_LINES_AT_ONCE = 8192
_TEXT, _NUMBER = pa.string(), pa.float64()
# What each release calls it, the older ones first; item ids of 2023 that differ in colour or size have one parent.
_USER, _ITEM, _RATING = ("reviewerID", "user_id"), ("parent_asin", "asin"), ("overall", "rating")
_SECONDS, _MILLISECONDS = "unixReviewTime", "timestamp"
_SCHEMA = pa.schema(
    dict.fromkeys(_USER + _ITEM, _TEXT)
    | dict.fromkeys(_RATING, _NUMBER)
    | dict.fromkeys((_SECONDS, _MILLISECONDS), pa.int64())
)
_ITEM_OF_META = re.compile(rb"""["'](?:parent_)?asin["']\s*:\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class Reviews:
    """All reviews, sorted by time, those of one moment as released; 22 bytes each.

    Attributes:
        user_N: index into ``users``.
        item_N: index into ``items``, which are in the order of their first review.
        rating_N: 1 to 5 stars.
        ms_N: milliseconds since 1970, UTC; of whole days in the releases of 2014 and 2018.
    """

    user_N: NDArray[np.int32]
    item_N: NDArray[np.int32]
    rating_N: NDArray[np.int8]
    ms_N: NDArray[np.int64]
    users: pa.Array
    items: pa.Array


def read_reviews(url: str) -> Reviews:
    """Reads and sorts the reviews.

    Raises:
        ValueError: there are none, a line cannot be read, or it lacks a user, an item, a time or a rating of 1 to 5.
    """
    batches = list(_batches(url))
    if not batches:
        raise ValueError(f"amazon_reviews: {url} holds no reviews")
    table = pa.Table.from_batches(batches)
    order = np.argsort(table["ms"].to_numpy(), kind="stable")
    table = table.take(pa.array(order))
    user, item = (table[name].combine_chunks().dictionary_encode() for name in ("user", "item"))
    return Reviews(
        user_N=user.indices.to_numpy(),
        item_N=item.indices.to_numpy(),
        rating_N=table["rating"].to_numpy(),
        ms_N=table["ms"].to_numpy(),
        users=user.dictionary,
        items=item.dictionary,
    )


def read_categories(url: str, items: pa.Array) -> pa.Array:
    """The narrowest category of each item, (I,), null where it has none.

    Raises:
        ValueError: there is no such file, or a line about one of the items cannot be read.
    """
    place = {name.encode(): index for index, name in enumerate(items.to_pylist())}
    found: list[str | None] = [None] * len(place)
    with _opened(url) as file:
        for row, line in enumerate(file):
            match = _ITEM_OF_META.search(line)
            # Most lines are of items that nobody here has reviewed, and reading them is slow.
            if match and match[1] in place:
                found[place[match[1]]] = _category(_literal(url, row, line))
    return pa.array(found, _TEXT)


def _category(item: dict[str, Any]) -> str | None:
    """2014 has lists of paths (the last counts, as in DIN), 2018 and 2023 have one path."""
    path = item.get("categories") or item.get("category") or [None]
    last = path[-1]
    return (last[-1] if last else None) if isinstance(last, list) else last


def _literal(url: str, row: int, line: bytes) -> dict[str, Any]:
    """A line of JSON or, in the release of 2014, a Python literal, which is parsed and not evaluated."""
    text = line.decode()
    try:
        found = json.loads(text)
    except ValueError:
        try:
            found = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"amazon_reviews: {url}, row {row}: it is neither JSON nor a literal: {error}") from error
    return cast(dict[str, Any], found)


def _batches(url: str) -> Iterator[pa.RecordBatch]:
    row = 0
    with _opened(url) as file:
        while lines := list(islice(file, _LINES_AT_ONCE)):
            try:
                yield _columns(url, row, parse_objects(lines, _SCHEMA))
            except BadObjectError as error:
                raise ValueError(f"amazon_reviews: {url}, row {row + error.index}: {error}") from error
            row += len(lines)


def _columns(url: str, row: int, found: pa.RecordBatch) -> pa.RecordBatch:
    ms = pc.coalesce(pc.multiply(found[_SECONDS], 1000), found[_MILLISECONDS])
    rating = pc.coalesce(*(found[name] for name in _RATING))
    columns = {
        "user": pc.coalesce(*(found[name] for name in _USER)),
        "item": pc.coalesce(*(found[name] for name in _ITEM)),
        "rating": pc.if_else(pc.is_in(rating, pa.array([1.0, 2, 3, 4, 5])), rating, None).cast(pa.int8()),
        "ms": ms,
    }
    for names, column in ((_USER, "user"), (_ITEM, "item"), (_RATING, "rating"), ((_SECONDS, _MILLISECONDS), "ms")):
        if columns[column].null_count:
            bad = row + int(columns[column].is_null().to_numpy(zero_copy_only=False).argmax())
            wanted = "a whole number from 1 to 5" if column == "rating" else "a value"
            raise ValueError(f"amazon_reviews: {url}, row {bad}: expected {wanted} for {' or '.join(names)}")
    return pa.RecordBatch.from_pydict(columns)


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    filesystem, path = fsspec.url_to_fs(url)
    with ExitStack() as stack:
        try:
            file: IO[bytes] = stack.enter_context(filesystem.open(path, "rb"))
        except (FileNotFoundError, IsADirectoryError) as error:
            raise ValueError(f"amazon_reviews: there is no file {url!r}") from error
        if url.endswith(".gz"):
            unpacked = cast(IO[bytes], stack.enter_context(gzip.open(file)))
            file = limited(unpacked, filesystem.size(path), f"amazon_reviews: {url}")
        yield file
