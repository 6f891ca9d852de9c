"""Reads the released files: reviews of 2014, 2018 and 2023, and the categories of items.

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
# Names of the columns in the releases of 2014 and 2018, then in 2023, except that parent_asin has precedence: ids of
# 2023 that differ in colour or size share a parent.
_USER, _ITEM, _RATING = ("reviewerID", "user_id"), ("parent_asin", "asin"), ("overall", "rating")
_SECONDS, _MILLISECONDS = "unixReviewTime", "timestamp"
_SCHEMA = pa.schema(
    dict.fromkeys(_USER + _ITEM, _TEXT)
    | dict.fromkeys(_RATING, _NUMBER)
    | dict.fromkeys((_SECONDS, _MILLISECONDS), pa.int64())
)
_METADATA_ITEM = re.compile(rb"""["'](?:parent_)?asin["']\s*:\s*["']([^"']+)["']""")


@dataclass(frozen=True)
class Reviews:
    """Holds all reviews, sorted by time, in the released order at equal times; 22 bytes each.

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
        ValueError: the file has no reviews, or a line cannot be read or lacks a user, an item, a time or a rating of 1
            to 5.
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
    """Reads the narrowest category of each item, (I,), null for an item without a category.

    Raises:
        ValueError: the file does not exist, or a line about a reviewed item cannot be read.
    """
    index_by_item = {name.encode(): index for index, name in enumerate(items.to_pylist())}
    categories: list[str | None] = [None] * len(index_by_item)
    with _opened(url) as file:
        for row, line in enumerate(file):
            match = _METADATA_ITEM.search(line)
            # Parse only the lines of reviewed items, because parsing is slow and most items have no review.
            if match and match[1] in index_by_item:
                categories[index_by_item[match[1]]] = _category(_literal(url, row, line))
    return pa.array(categories, _TEXT)


def _category(item: dict[str, Any]) -> str | None:
    """Returns the last category of an item's path; in 2014 an item has several paths, and the last path counts."""
    path = item.get("categories") or item.get("category") or [None]
    last: str | list[str] | None = path[-1]
    if not isinstance(last, list):
        return last
    return last[-1] if last else None


def _literal(url: str, row: int, line: bytes) -> dict[str, Any]:
    """Parses a line of JSON or, in the release of 2014, a Python literal, without evaluating it as code."""
    text = line.decode()
    try:
        item = json.loads(text)
    except ValueError:
        try:
            item = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"amazon_reviews: {url}, row {row}: it is neither JSON nor a literal: {error}") from error
    return cast(dict[str, Any], item)


def _batches(url: str) -> Iterator[pa.RecordBatch]:
    row = 0
    with _opened(url) as file:
        while lines := list(islice(file, _LINES_AT_ONCE)):
            try:
                yield _columns(url, row, parse_objects(lines, _SCHEMA))
            except BadObjectError as error:
                raise ValueError(f"amazon_reviews: {url}, row {row + error.index}: {error}") from error
            row += len(lines)


def _columns(url: str, row: int, released: pa.RecordBatch) -> pa.RecordBatch:
    """Merges the columns of the releases, and checks that no value is missing."""
    ms = pc.coalesce(pc.multiply(released[_SECONDS], 1000), released[_MILLISECONDS])
    rating = pc.coalesce(*(released[name] for name in _RATING))
    columns = {
        "user": pc.coalesce(*(released[name] for name in _USER)),
        "item": pc.coalesce(*(released[name] for name in _ITEM)),
        "rating": pc.if_else(pc.is_in(rating, pa.array([1.0, 2, 3, 4, 5])), rating, None).cast(pa.int8()),
        "ms": ms,
    }
    for names, column in ((_USER, "user"), (_ITEM, "item"), (_RATING, "rating"), ((_SECONDS, _MILLISECONDS), "ms")):
        if columns[column].null_count:
            bad = row + int(columns[column].is_null().to_numpy(zero_copy_only=False).argmax())
            expected = "a whole number from 1 to 5" if column == "rating" else "a value"
            raise ValueError(f"amazon_reviews: {url}, row {bad}: expected {expected} for {' or '.join(names)}")
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
            # A small file may unpack to any size.
            file = limited(unpacked, filesystem.size(path), f"amazon_reviews: {url}")
        yield file
