"""Captures the graph of a served model, and checks it at sizes other than those that it was captured with.

Legend: B examples, V values of a feature, E events, K width of a teacher's embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
from exfm.serving.description import AGES, DENSE, examples_input, input_specs
from exfm.serving.feature_arrays import FeatureArrays
from exfm.serving.served_model import ServedModel
from exfm.serving.weights import program_weights


def capture(served: ServedModel) -> ExportedProgram:
    """Captures the graph of a served model, for at least 1 example, and any number of values and events."""
    tensors = tuple(_examples(served, size=5, longest=3))
    free = tuple({0: Dim.DYNAMIC} for _ in tensors)
    # By default torch.export specializes on a size of 1; this captures a graph for all sizes.
    sizes_alike = symbolic_shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with sizes_alike, torch.no_grad():
        return torch.export.export(served, tensors, dynamic_shapes=(free,), strict=False)


def _examples(served: ServedModel, size: int, longest: int) -> Iterator[Tensor]:
    """Yields the program's arguments for some examples, with 0 to ``longest`` values or events each.

    Of the features that a model shares, every second has a single row, and the others have a row less than examples.
    """
    feature_by_name = by_name(served.features)
    rows_of = dict.fromkeys(feature_by_name, size)
    for number, name in enumerate(sorted(served.shared)):
        rows_of[name] = 1 if number % 2 else max(1, size - 1)
    for spec in input_specs(served.features, {}, served.shared):
        name, _, field = spec.name.partition(".")
        feature = feature_by_name.get(name)  # none for the tensor of all dense features
        most = feature.max_length if isinstance(feature, SequenceFeature) else longest
        rows = rows_of.get(name, size)
        # The first row has values where all examples share it.
        kept = ((torch.arange(rows) + int(rows < size)) % (longest + 1)).clamp(max=most)
        shape: list[int] = []
        for dim in spec.shape:
            if isinstance(dim, str):  # examples, or rows, or the number of the feature's values or events
                shape.append({"B": size, f"B_{name}": rows}.get(dim, int(kept.sum())))
            else:
                shape.append(dim)
        if spec.dtype == "float32":
            numbers = torch.arange(torch.Size(shape).numel()).view(shape).sin()
            if len(shape) == 2:
                # Not the first row, because a batch of 1 checks present numbers.
                numbers[1::3, _may_miss(served.features, name)] = torch.nan
            yield numbers
        elif field == "starts":
            yield kept.cumsum(0) - kept
        elif field == "lengths":
            yield kept
        elif spec.name == examples_input(name):
            yield torch.arange(size).flip(0) % rows
        elif field == AGES:
            yield torch.arange(shape[0]).flip(0) ** 3
        else:
            yield torch.arange(shape[0]) % _table_rows(feature, field)
    for width in served.embeddings.values():
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


def check_graph(
    captured: ServedModel, served: ServedModel, program: ExportedProgram, model: str, tolerance: float
) -> None:
    """Raises RunError unless a captured graph and the model compute the same, at sizes other than the captured.

    Args:
        captured: the inputs of the capture, whose examples may share rows.
        served: the model, whose examples share none.
        program: the graph.
        model: its name, for messages.
        tolerance: of a prediction.
    """
    run = program.module()
    histories = [feature.max_length for feature in served.features if isinstance(feature, SequenceFeature)]
    largest = max(8, _PADDED // max(histories, default=1) ** 2)
    for wished_size, longest in _SIZES:
        size = min(wished_size, largest)
        tensors = tuple(_examples(captured, size, longest))
        try:
            with torch.no_grad():
                pairs = zip(run(*tensors), served(*_without_sharing(captured, tensors)), strict=True)
                error = max(relative_difference(computed, expected) for computed, expected in pairs)
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


def _without_sharing(captured: ServedModel, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Returns arguments of a model whose examples share no rows: the rows of each example, repeated."""
    named = dict(zip(captured.names, tensors, strict=True))
    for feature in captured.shared:
        examples_B = named.pop(examples_input(feature)).numpy()
        names = [name for name in named if name.startswith(f"{feature}.")]
        *value_names, last = names
        values = tuple(named[name].numpy() for name in value_names)
        sizes = named[last]
        starts = last.endswith(".starts")
        if starts:
            sizes = torch.cat([sizes, sizes.new_tensor([len(values[0])])]).diff()
        taken = FeatureArrays(values, sizes.numpy(), starts).take(examples_B)
        named.update(zip(names, map(torch.from_numpy, taken.arguments()), strict=True))
    return tuple(named.values())


def graph_digest(programs: Sequence[ExportedProgram]) -> str:
    """Computes a checksum of captured graphs, their inputs and the shapes of their weights, but not of their values."""
    lines: list[str] = []
    for program in programs:
        lines.append(program.graph_module.code)
        for spec in program.graph_signature.input_specs:
            lines.append(f"{spec.kind} {spec.arg} {spec.target}")
        for name, tensor in sorted(program_weights(program).items()):
            lines.append(f"{name} {tensor.dtype} {tuple(tensor.shape)}")
    return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
