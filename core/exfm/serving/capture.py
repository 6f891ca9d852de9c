"""Captures the graph of a served model, and checks it at sizes other than those that it was captured with.

Legend: B examples, V values of a feature, E events, K width of a teacher's embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import xxhash
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from exfm.errors import RunError
from exfm.interfaces.schema import DenseFeature, Feature, SequenceFeature, SequenceField
from exfm.interfaces.vector_feature import VectorFeature
from exfm.mappings import by_name
from exfm.modeling.difference import relative_difference
from exfm.serving.description import AGES, DENSE, input_specs
from exfm.serving.served_model import ServedModel
from exfm.serving.weights import program_weights


def capture(served: ServedModel) -> ExportedProgram:
    """Captures the graph of a served model, for at least 1 example, and any number of values and events."""
    tensors = tuple(_examples(served.features, served.embeddings, size=5, longest=3))
    free = tuple({0: Dim.DYNAMIC} for _ in tensors)
    # By default torch.export specializes on a size of 1; this captures a graph for all sizes.
    sizes_alike = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with sizes_alike, torch.no_grad():
        return torch.export.export(served, tensors, dynamic_shapes=(free,), strict=False)


def _examples(features: Sequence[Feature], embeddings: Mapping[str, int], size: int, longest: int) -> Iterator[Tensor]:
    """Yields the program's arguments for some examples, with 0 to ``longest`` values or events each."""
    lengths = torch.arange(size) % (longest + 1)
    feature_by_name = by_name(features)
    for spec in input_specs(features, {}):
        name, _, field = spec.name.partition(".")
        feature = feature_by_name.get(name)  # none for the tensor of all dense features
        most = feature.max_length if isinstance(feature, SequenceFeature) else longest
        kept = lengths.clamp(max=most)
        shape: list[int] = []
        for dim in spec.shape:
            if dim == "B":
                shape.append(size)
            elif isinstance(dim, str):  # the number of the feature's values or events
                shape.append(int(kept.sum()))
            else:
                shape.append(dim)
        if spec.dtype == "float32":
            numbers = torch.arange(torch.Size(shape).numel()).view(shape).sin()
            if len(shape) == 2:
                # Not the first row, because a batch of 1 checks present numbers.
                numbers[1::3, _may_miss(features, name)] = torch.nan
            yield numbers
        elif field == "starts":
            yield kept.cumsum(0) - kept
        elif spec.shape == ("B",):
            yield kept
        elif field == AGES:
            yield torch.arange(shape[0]).flip(0) ** 3
        else:
            yield torch.arange(shape[0]) % _table_rows(feature, field)
    for width in embeddings.values():
        embedding_BK = torch.arange(size * width).view(size, width).cos()
        embedding_BK[1::3] = torch.nan  # not the first, because a batch of 1 checks a present embedding
        yield embedding_BK


def _may_miss(features: Sequence[Feature], name: str) -> list[bool]:
    """Tells of each column of a tensor of numbers whether it may be missing.

    Args:
        name: of a sequence or a vector, or that of the tensor of all dense features.
    """
    numbers: list[DenseFeature | SequenceField] = []
    for feature in features:
        if isinstance(feature, SequenceFeature) and feature.name == name:
            numbers = [field for field in feature.fields if field.kind == "dense"]
        elif isinstance(feature, DenseFeature) and name == DENSE:
            numbers.append(feature)
        elif isinstance(feature, VectorFeature) and feature.name == name:
            return [True] * feature.width
    return [number.missing is not None for number in numbers]


def _table_rows(feature: Feature | None, field: str) -> int:
    """Returns the number of rows of the table that a feature, or a field of a sequence, is looked up in."""
    assert feature is not None and not isinstance(feature, DenseFeature | VectorFeature)
    if isinstance(feature, SequenceFeature):
        return next(column.rows for column in feature.fields if column.name == field)
    return feature.rows


# Examples and longest histories: the sizes 0, 1 and 2 that graphs specialize on, an odd size, and large sizes.
_SIZES = ((1, 0), (1, 1), (2, 1), (3, 0), (8, 40), (513, 3), (5_000, 2))
_PADDED = 1 << 25
"""Limit of the pairs of events in a check, because a captured graph pads every history to the maximum length."""


def check_graph(served: ServedModel, program: ExportedProgram, model: str, tolerance: float) -> None:
    """Raises RunError unless the captured graph and the model compute the same, at sizes other than the captured."""
    run = program.module()
    histories = [feature.max_length for feature in served.features if isinstance(feature, SequenceFeature)]
    largest = max(8, _PADDED // max(histories, default=1) ** 2)
    for wished_size, longest in _SIZES:
        size = min(wished_size, largest)
        tensors = tuple(_examples(served.features, served.embeddings, size, longest))
        try:
            with torch.no_grad():
                pairs = zip(run(*tensors), served(*tensors), strict=True)
                error = max(relative_difference(captured, expected) for captured, expected in pairs)
        except Exception as failure:  # a guard that torch.export has put into the graph
            raise RunError(
                f"models.{model}: the captured graph refuses {size} examples with histories of up to {longest} events: "
                f"{first_line(failure)}"
            ) from failure
        if not error <= tolerance:  # not `>`, so that NaN is an error too
            raise RunError(
                f"models.{model}: for {size} examples with histories of up to {longest} events the captured graph is "
                f"{error:.2g} off the model: a component computes something else under torch.export"
            )


def graph_digest(program: ExportedProgram) -> str:
    """Computes a checksum of a captured graph, its inputs and the shapes of its weights, but not of their values."""
    lines = [program.graph_module.code]
    for spec in program.graph_signature.input_specs:
        lines.append(f"{spec.kind} {spec.arg} {spec.target}")
    for name, tensor in sorted(program_weights(program).items()):
        lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
