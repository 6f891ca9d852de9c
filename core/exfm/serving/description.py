"""Describes an export in inputs.json (features, tensors and files), and converts rows to its tensors.

Legend: B examples, V values of a feature, E events of a sequence, F dense features, G numbers of an event, K width of a
teacher's embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from exfm.data.features import dense_numbers
from exfm.interfaces.schema import DenseFeature, Feature, MultiValuedFeature, SequenceFeature, SequenceField
from exfm.interfaces.vector_feature import VectorFeature
from exfm.serving.feature_arrays import feature_arrays
from exfm.sources.ids import holds_bytes

DESCRIPTION_FILE = "inputs.json"
PROGRAM_FILE = "program.pt2"
COMPILED_FILE = "compiled.pt2"
ONNX_FILE = "model.onnx"
REQUEST_FILE = "request.pt2"
COMPILED_REQUEST_FILE = "compiled_request.pt2"
PROGRAM_FILES = (PROGRAM_FILE, COMPILED_FILE, REQUEST_FILE, COMPILED_REQUEST_FILE)
"""Files of code, which go on with the weights of other snapshots."""

CARD_FILE = "MODEL_CARD.md"

WEIGHTS_FILES = "weights-*.safetensors"
"""Pattern of the names of the file of weights, which has another name for other weights."""

DENSE = "dense"
AGES = "age_seconds"
HASHING = (
    "ids 'row': the value is the table row. ids 'hash': the row is mix(key) modulo rows, all in unsigned 64 bits. "
    "key: an integer itself (two's complement), or for bytes, a UUID, or a string in UTF-8 the sum over its bytes of "
    "(b_i + 1) * P^(i + 1), P = 0x9E3779B97F4A7C15. mix(x): x += P; x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9; "
    "x = (x ^ x >> 27) * 0x94D049BB133111EB; x ^ x >> 31. ids 'managed': in the "
    "place of a row mix(key) >> 1 is given, and the program knows its row. kind 'bucketized': the row is the count of "
    "boundaries that the number reaches, in single precision; without a number it is the last row. kind 'crossed': "
    "the row is mix(c) modulo rows, where c begins as 0 and becomes mix(c XOR key) for each of its columns in turn; "
    "the key of a column with boundaries is the number of the bucket."
)
"""Rules that map ids to table rows, for programs that build the tensors themselves."""

_TYPES = {
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "bytes": pa.binary(),
    "double": pa.float64(),
    "timestamp": pa.timestamp("us"),
}
_LIST = "list of "
_BYTES = " bytes"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TensorSpec(_Section):
    """Describes a tensor; a dimension is a number, or a name if it varies. Equal names mean equal sizes."""

    name: str
    dtype: Literal["float32", "int64"]
    shape: tuple[int | str, ...]
    holds: str


class ExportedFile(_Section):
    """Describes a file of the export: size and checksum (XXH3, 128 bits)."""

    bytes: int
    xxh3: str


class Description(_Section):
    """Holds the content of inputs.json.

    Attributes:
        columns: type of every column of a row, as in the stream; a timestamp is UTC.
        event_time: column of a row's time, if a sequence needs it; else empty.
        embeddings: width of the embedding of each example that the model reads as input, by teacher.
        watermark: time before which the model's training examples are.
        inputs: the program's arguments, in order.
        request_inputs: the arguments of the program of a request, in order; none where the export has no such program.
        outputs: the program's results, in order: a probability per example and task, or what they say that they hold.
        tables: how the rows of embedding tables are stored; ``int8`` with a scale and an offset per row.
        tables_ne_loss: relative increase of NE by task that this costs, on the snapshot's last window.
        graph: checksum of the captured graphs without their weights.
    """

    format: Literal[2] = 2
    experiment: str
    model: str
    snapshot: int
    watermark: datetime
    versions: dict[str, str]
    columns: dict[str, str]
    event_time: str = ""
    features: tuple[Feature, ...]
    embeddings: dict[str, int] = {}
    hashing: str = HASHING
    inputs: tuple[TensorSpec, ...]
    request_inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...]
    graph: str
    tables: Literal["fp32", "int8"] = "fp32"
    tables_ne_loss: dict[str, float] = {}
    files: dict[str, ExportedFile]

    @property
    def weights_file(self) -> str:
        """Returns the name of the file of weights."""
        return next(filter(is_weights_file, self.files))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Returns the labels that the program predicts."""
        return tuple(output.name for output in self.outputs)


def is_weights_file(name: str) -> bool:
    """Tells whether a file of an export holds its weights."""
    return fnmatchcase(name, WEIGHTS_FILES)


def embedding_input(teacher: str) -> str:
    """Names the column and the tensor of a teacher's embedding of each example."""
    return f"{teacher}.embedding"


def vector_input(feature: VectorFeature) -> str:
    """Names the tensor of a vector feature."""
    return f"{feature.name}.vector"


def examples_input(feature: str) -> str:
    """Names the tensor that says which of a shared feature's rows each example has."""
    return f"{feature}.examples"


def input_specs(
    features: Sequence[Feature], embeddings: Mapping[str, int], shared: Collection[str] = ()
) -> Iterator[TensorSpec]:
    """Yields the program's arguments: dense features in a tensor, the tensors of each other feature, then embeddings.

    Bags have the start of each example and histories have the length of each example. Offsets would tie two dimensions
    of the captured graph, because there are as many offsets as examples and a further offset.

    Args:
        features: the model's.
        embeddings: width of the embedding of each example, by teacher.
        shared: features with fewer rows than examples, and a tensor that says which row each example has.
    """
    dense = [feature for feature in features if isinstance(feature, DenseFeature)]
    if dense:
        yield _spec(DENSE, "float32", ("B", len(dense)), _numbers_words(dense))
    for feature in features:
        size = f"B_{feature.name}" if feature.name in shared else "B"
        if isinstance(feature, SequenceFeature):
            yield from _sequence_specs(feature, size)
        elif isinstance(feature, VectorFeature):
            holds = "each example's vector; a row of NaN where it is missing"
            yield _spec(vector_input(feature), "float32", ("B", feature.width), holds)
        elif not isinstance(feature, DenseFeature):
            yield _spec(f"{feature.name}.rows", "int64", (f"V_{feature.name}",), "table rows, example by example")
            if isinstance(feature, MultiValuedFeature) and feature.weights is not None:
                holds = "weights of the table rows, divided by their sum in each example"
                yield _spec(f"{feature.name}.weights", "float32", (f"V_{feature.name}",), holds)
            yield _spec(f"{feature.name}.starts", "int64", (size,), "where each example's rows begin")
        if feature.name in shared:
            holds = f"the number of the row of {feature.name} that each example has, from 0"
            yield _spec(examples_input(feature.name), "int64", ("B",), holds)
    for teacher, width in embeddings.items():
        holds = (
            f"{teacher}'s embedding of each example (user and candidate), computed before the request as its "
            "supervision stores it: int8 numbers times their scale. A row of NaN where it has none"
        )
        yield _spec(embedding_input(teacher), "float32", ("B", width), holds)


def _sequence_specs(feature: SequenceFeature, size: str) -> Iterator[TensorSpec]:
    events = f"E_{feature.name}"
    for field in feature.fields:
        if field.kind == "categorical":
            name = f"{feature.name}.{field.name}"
            yield _spec(name, "int64", (events,), "table rows of the events, oldest first, example by example")
    numbers = [field for field in feature.fields if field.kind == "dense"]
    if numbers:
        yield _spec(f"{feature.name}.numbers", "float32", (events, len(numbers)), _numbers_words(numbers))
    if feature.times is not None:
        holds = "whole seconds from the events to their example, rounded down"
        yield _spec(f"{feature.name}.{AGES}", "int64", (events,), holds)
    kept = f"events of each example, at most the newest {feature.max_length}"
    yield _spec(f"{feature.name}.lengths", "int64", (size,), kept)


def _numbers_words(numbers: Sequence[DenseFeature | SequenceField]) -> str:
    """Names the numbers in a tensor, and those of them that may be missing."""
    words = f"{', '.join(number.name for number in numbers)}; transformed"
    missing = [number.name for number in numbers if number.missing]
    return f"{words}; NaN where missing, of {', '.join(missing)}" if missing else words


def _spec(name: str, dtype: Literal["float32", "int64"], shape: tuple[int | str, ...], holds: str) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, holds=holds)


def arrays(features: Sequence[Feature], rows: pa.RecordBatch, event_time: str = "") -> Iterator[npt.NDArray[Any]]:
    """Yields the program's arguments for some rows, in the order of ``input_specs``."""
    numbers_BF = dense_numbers(rows, features)
    if numbers_BF.shape[1]:
        yield numbers_BF
    for feature in features:
        if not isinstance(feature, DenseFeature):
            yield from feature_arrays(rows, feature, event_time).arguments()


def without_times(features: Sequence[Feature]) -> Iterator[Feature]:
    """Yields the features without the times of events, for a model that does not read them."""
    for feature in features:
        if isinstance(feature, SequenceFeature):
            yield feature.model_copy(update={"times": None})
        else:
            yield feature


def needs_event_time(features: Sequence[Feature]) -> bool:
    """Tells whether a row's event time is needed, because its events have times and no ages."""
    sequences = [feature for feature in features if isinstance(feature, SequenceFeature)]
    return any(sequence.times is not None and sequence.times.holds == "time" for sequence in sequences)


def source_columns(features: Sequence[Feature]) -> Iterator[str]:
    """Yields the columns that the features are read from."""
    for feature in features:
        yield from feature.source_columns


def type_name(kind: pa.DataType) -> str:
    """Returns the name of the type of a column's values at serving; ids with equal hashes share a type."""
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _LIST + type_name(kind.value_type)
    if pa.types.is_timestamp(kind):
        return "timestamp"
    # uint64 has values that int64 lacks; all smaller integers hash by their value, so int64 stands for them.
    if pa.types.is_integer(kind):
        return "uint64" if kind == pa.uint64() else "int64"
    if pa.types.is_boolean(kind):
        return "bool"
    if holds_bytes(kind):
        stored = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        return f"{stored.byte_width}{_BYTES}" if pa.types.is_fixed_size_binary(stored) else "bytes"
    return "double" if pa.types.is_floating(kind) else "string"


def arrow_type(name: str) -> pa.DataType:
    """Returns the type whose name ``type_name`` has returned."""
    if name.startswith(_LIST):
        return pa.list_(arrow_type(name.removeprefix(_LIST)))
    if name.endswith(_BYTES):
        # UUIDs and digests: a text is refused, because it is another id than the bytes that it spells.
        return pa.binary(int(name.removesuffix(_BYTES)))
    return _TYPES[name]
