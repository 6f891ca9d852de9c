"""Types that other writers make: the same rows whatever they are written as, or an error that names the type."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

import exfm
from exfm.config.experiment import StreamConfig
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from tests.data.reference import key, splitmix
from tests.data.test_stream import Source

SCHEMA = exfm.schema.FeatureSchema.model_validate(
    {
        "domain": "place",
        "features": [
            {"kind": "categorical", "name": "item", "rows": 50},
            {"kind": "categorical", "name": "place", "rows": 50},
            {"kind": "multi_valued", "name": "tags", "rows": 50},
            {"kind": "dense", "name": "price"},
            {"kind": "sequence", "name": "history", "max_length": 2,
             "fields": [{"name": "seen", "rows": 50}, {"name": "age", "kind": "dense"}]},
        ],
        "labels": [{"name": "click"}],
    }
)  # fmt: skip
PLAIN = pa.table(
    {
        "example_id": [0, 1, 2],
        "event_time": pa.array([5, 6, 7], pa.timestamp("us")),
        "item": [3, None, 4],
        "place": ["a", "b", None],
        "tags": [["x", "y"], [], None],
        "price": [1.5, 2.0, 3.25],
        "seen": pa.array([[1, 2, 3], [], [4]]),
        "age": pa.array([[1.0, 2.0, 3.0], [], [0.5]]),
        "click": pa.array([0, 1, 0], pa.int8()),
    }
)


WORDS = pa.dictionary(pa.int8(), pa.string())
LARGE_VIEW = pa.LargeListViewArray


def as_view(lists: pa.Array, kind: Any = pa.ListViewArray) -> pa.Array:
    offsets = lists.offsets.to_pylist()
    sizes = [end - start for start, end in pairwise(offsets)]
    return kind.from_arrays(offsets[:-1], sizes, lists.values)


def written(column: str) -> pa.Array:
    return PLAIN[column].combine_chunks()


ODD: dict[str, tuple[str, Callable[[], pa.Array]]] = {
    "decimal ids": ("item", lambda: written("item").cast(pa.decimal128(20, 0))),
    "decimal ids with a scale": ("item", lambda: written("item").cast(pa.decimal128(25, 3))),
    "decimal numbers": ("price", lambda: written("price").cast(pa.decimal128(10, 2))),
    "decimal labels": ("click", lambda: written("click").cast(pa.decimal256(40, 0))),
    "decimal example ids": ("example_id", lambda: written("example_id").cast(pa.decimal128(20, 0))),
    "unsigned": ("item", lambda: written("item").cast(pa.uint8())),
    "bytes": ("place", lambda: written("place").cast(pa.binary())),
    "large bytes": ("place", lambda: written("place").cast(pa.large_binary())),
    "string view": ("place", lambda: written("place").cast(pa.string_view())),
    "large string": ("place", lambda: written("place").cast(pa.large_string())),
    "dictionary": ("place", lambda: written("place").dictionary_encode()),
    "dictionary of large strings": ("place", lambda: written("place").cast(pa.large_string()).dictionary_encode()),
    "list view": ("seen", lambda: as_view(written("seen"))),
    "large list view": ("age", lambda: as_view(written("age").cast(pa.large_list(pa.float32())), LARGE_VIEW)),
    "large list": ("seen", lambda: written("seen").cast(pa.large_list(pa.int16()))),
    "required elements": ("seen", lambda: written("seen").cast(pa.list_(pa.field("e", pa.int64(), nullable=False)))),
    "list of views": ("tags", lambda: written("tags").cast(pa.list_(pa.string_view()))),
    "list of dictionaries": ("tags", lambda: pa.array(PLAIN["tags"].to_pylist(), pa.list_(WORDS))),
    "half floats": ("price", lambda: written("price").cast(pa.float16())),
    "another zone": ("event_time", lambda: written("event_time").cast(pa.timestamp("ns", "Asia/Tokyo"))),
}  # fmt: skip


def with_column(name: str, values: pa.Array) -> pa.RecordBatch:
    table = PLAIN.set_column(PLAIN.schema.names.index(name), name, values)
    return table.combine_chunks().to_batches()[0]


def plain(first_id: int) -> pa.RecordBatch:
    """The rows under other ids and, as time goes on, at other times."""
    moved = with_column("example_id", pa.array(range(first_id, first_id + 3)))
    return moved.set_column(1, "event_time", pa.array(range(first_id + 5, first_id + 8), pa.timestamp("us")))


def decoded(*batches: pa.RecordBatch) -> list[Batch]:
    config = StreamConfig.model_construct(chunk_rows=6)  # type: ignore[call-arg]
    reader = ChunkReader(Source(lambda: iter(batches)), SCHEMA, config, {}, exfm.sources.Shard())
    return [chunk.batch for chunk in reader.read(exfm.sources.Window(0, 0, 100))]


def numbers(batch: Batch) -> dict[str, Any]:
    history = batch.sequences["history"]
    return {
        "ids": batch.example_id.tolist(), "times": batch.event_time_us.tolist(), "groups": batch.group.tolist(),
        "dense": batch.dense_BF.tolist(), "values": batch.sparse.values().tolist(),
        "lengths": batch.sparse.lengths().tolist(), "events": history.ids_EC.tolist(),
        "ages": history.dense_EG.tolist(), "offsets": history.offsets.tolist(),
        "labels": batch.labels["click"].tolist(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_the_same_rows_in_other_types(kind: str) -> None:
    """The rows alone, and in a chunk with rows in the usual types after them."""
    column, values = ODD[kind]
    usual, odd = with_column(column, written(column)), with_column(column, values())
    for following in ([], [plain(3)]):
        [expected], [actual] = decoded(usual, *following), decoded(odd, *following)
        assert numbers(actual) == numbers(expected)


@pytest.mark.parametrize("column", ["item", "place", "tags", "seen"])
def test_a_column_of_nulls_has_no_type(column: str) -> None:
    """A day on which nobody has a history, or all ids are missing, as writers without a schema store it."""
    nothing = pa.nulls(3) if column in ("item", "place") else pa.array([[], None, []])
    odd = with_column(column, nothing)
    ages = pa.array([[], None, []], pa.list_(pa.null()))
    odd = odd.set_column(odd.schema.names.index("age"), "age", ages) if column == "seen" else odd
    [alone] = decoded(odd)
    assert alone.size == 3
    [both] = decoded(odd, plain(3))
    assert both.example_id.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("item", pa.array(["1.5", "2", "3"]).cast(pa.decimal128(10, 1)), r"not decimal128\(10, 1\)"),
        ("item", pa.array([1.0, None, 3.0]), "integers, strings, bytes or UUIDs, not double"),
        ("price", pa.array(["1", "2", "3"]), "a number, not string"),
        ("seen", pa.array([{"a": 1}] * 3), "a list of integers, strings, bytes or UUIDs, not struct"),
        ("item", pa.array([1, 2, 3], pa.date32()), "integers, strings, bytes or UUIDs, not date32"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(column: str, values: pa.Array, words: str) -> None:
    with pytest.raises(exfm.ConfigError, match=rf"row 0: {column}: the column must be .*{words}"):
        decoded(with_column(column, values))


UUIDS = [UUID(int=7), None, UUID("c0ffee00-1234-4321-8888-ff00ff00ff00")]
OCTETS = [None if uuid is None else uuid.bytes for uuid in UUIDS]
BYTE_TYPES: dict[str, Callable[[list[Any]], pa.Array]] = {
    "UUIDs": lambda octets: pa.ExtensionArray.from_storage(pa.uuid(), pa.array(octets, pa.binary(16))),
    "bytes of equal length": lambda octets: pa.array(octets, pa.binary(16)),
    "bytes": lambda octets: pa.array(octets, pa.binary()),
    "views of bytes": lambda octets: pa.array(octets, pa.binary_view()),
    "dictionary of bytes": lambda octets: pa.array(octets, pa.binary()).dictionary_encode(),
}


@pytest.mark.parametrize("kind", BYTE_TYPES)
def test_ids_of_bytes(kind: str) -> None:
    """As a scalar, in a list and in a sequence: all types of the same bytes are the same rows."""
    offsets = pa.array([0, 2, 2, 3], pa.int32())
    present = [OCTETS[0], OCTETS[2], OCTETS[0]]
    seen = pa.ListArray.from_arrays(offsets, BYTE_TYPES[kind](present))
    tags = pa.ListArray.from_arrays(offsets, BYTE_TYPES[kind](present[::-1]))
    odd = with_column("place", BYTE_TYPES[kind](OCTETS))
    odd = odd.set_column(odd.schema.names.index("tags"), "tags", tags)
    odd = odd.set_column(odd.schema.names.index("seen"), "seen", seen)
    odd = odd.set_column(odd.schema.names.index("age"), "age", pa.array([[1.0, 2.0], [], [0.5]]))
    [batch] = decoded(odd)
    assert batch.sparse["place"].values().tolist() == [splitmix(key(octets)) % 50 for octets in OCTETS if octets]
    assert batch.sparse["tags"].values().tolist() == [splitmix(key(octets)) % 50 for octets in present[::-1]]
    assert batch.sequences["history"].ids_EC.flatten().tolist() == [splitmix(key(octets)) % 50 for octets in present]


def test_bytes_may_be_utf8_in_some_batches() -> None:
    """In a chunk: strings, bytes that are strings, and bytes that are none."""
    words: list[list[Any]] = [["a", "b", None], [b"a", b"\xff", b""], [b"\xff", b"a", b"b"]]
    batches = [plain(first) for first in (0, 3, 6)]
    for number, kind in enumerate((pa.string(), pa.binary(), pa.large_binary())):
        batch = batches[number]
        for column, values in (("place", words[number]), ("tags", [[word] for word in words[number] if word] + [[]])):
            array = pa.array(values, kind if column == "place" else pa.list_(kind))
            array = array if len(array) == 3 else pa.concat_arrays([array, array[:1]])[:3]
            batch = batch.set_column(batch.schema.names.index(column), column, array)
        batches[number] = batch
    chunks = decoded(*batches)
    places = [row for chunk in chunks for row in chunk.sparse["place"].values().tolist()]
    assert places == [splitmix(key(word)) % 50 for word in chain(*words) if word is not None]


def test_a_uuid_is_not_its_text() -> None:
    uuids = with_column("place", BYTE_TYPES["UUIDs"](OCTETS))
    texts = plain(3).set_column(3, "place", pa.array([None if uuid is None else str(uuid) for uuid in UUIDS]))
    assert texts.schema.names[3] == "place"
    with pytest.raises(exfm.ConfigError, match=r"place: the column holds string, and held bytes until now.*its text"):
        decoded(uuids, texts)
