"""A schema with every kind of feature, random batches of any schema, and a featurizer in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

import exfm
from exfm.data.batch import Batch, SequenceBatch

# Few rows and a common table for the candidate, a list and two histories: most steps meet a row several times.
FEATURES: dict[str, dict[str, Any]] = {
    "user": {"kind": "categorical", "rows": 5},
    "price": {"kind": "dense"},
    "item": {"kind": "categorical", "rows": 6, "table": "items"},
    "viewed": {"kind": "multi_valued", "rows": 6, "table": "items"},
    "tags": {"kind": "multi_valued", "rows": 4},
    "city": {"kind": "categorical", "rows": 4, "table": "tags"},
    "age": {"kind": "dense"},
    "history": {"kind": "sequence", "max_length": 4,
                "fields": [{"name": "item", "rows": 6, "table": "items"}, {"name": "gap", "kind": "dense"},
                           {"name": "rating", "rows": 3}, {"name": "price", "kind": "dense"}]},
    "clicks": {"kind": "sequence", "max_length": 4, "fields": [{"name": "item", "rows": 6, "table": "items"}]},
    "visits": {"kind": "sequence", "max_length": 4, "times": {"column": "visits.at", "holds": "time"},
               "fields": [{"name": "item", "rows": 6, "table": "items"}]},
    "moods": {"kind": "sequence", "max_length": 4, "fields": [{"name": "mood", "kind": "dense"}]},
}  # fmt: skip
EVERYTHING = tuple(name for name in FEATURES if name != "visits")


def schema_of(*names: str) -> exfm.schema.FeatureSchema:
    """A schema with some of the features, and two labels."""
    features = [{"name": name, **FEATURES[name]} for name in names]
    return exfm.schema.FeatureSchema.model_validate(
        {"features": features, "labels": [{"name": "click"}, {"name": "buy"}]}
    )


def random_batch(schema: exfm.schema.FeatureSchema, size: int, seed: int = 0) -> Batch:
    """Random examples; ids may be missing, lists and histories empty."""
    generator = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    keys, values, lengths = [], [torch.zeros(0, dtype=torch.int64)], [torch.zeros(0, dtype=torch.int32)]
    sequences = {}
    for feature in schema.features:
        if isinstance(feature, exfm.schema.SequenceFeature):
            offsets = torch.cat([torch.zeros(1, dtype=torch.int64), integers(feature.max_length + 1, size).cumsum(0)])
            ids = [integers(field.rows, int(offsets[-1])) for field in feature.fields if field.kind == "categorical"]
            numbers = sum(field.kind == "dense" for field in feature.fields)
            ids_EC = torch.stack(ids, dim=1) if ids else torch.zeros(int(offsets[-1]), 0, dtype=torch.int64)
            dense_EG = torch.randn(int(offsets[-1]), numbers, generator=generator)
            ages_E = None if feature.times is None else integers(10**6, int(offsets[-1]))
            sequences[feature.name] = SequenceBatch(ids_EC, dense_EG, offsets, ages_E)
        elif isinstance(feature, exfm.schema.CategoricalFeature | exfm.schema.MultiValuedFeature):
            keys.append(feature.name)
            lengths.append(integers(4 if feature.kind == "multi_valued" else 2, size).to(torch.int32))
            values.append(integers(feature.rows, int(lengths[-1].sum())))
    dense = sum(isinstance(feature, exfm.schema.DenseFeature) for feature in schema.features)
    return Batch(
        example_id=torch.arange(size),
        event_time_us=torch.arange(size),
        group=torch.arange(size),
        dense_BF=torch.randn(size, dense, generator=generator) * 3 + 5,
        sparse=KeyedJaggedTensor(keys=keys, values=torch.cat(values), lengths=torch.cat(lengths), stride=size),
        sequences=sequences,
        labels={task: integers(2, size).float() for task in schema.tasks},
        oracle={},
    )


def table_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights of all tables in a module, by table name."""
    return {
        name.split(".")[-2].removeprefix("table_"): value
        for name, value in module.state_dict().items()
        if "embedding_bags" in name
    }


def bags_of(batch: Batch, name: str) -> list[Tensor]:
    """A sparse feature's rows, example by example."""
    feature = batch.sparse[name]
    return list(feature.values().split(feature.lengths().tolist()))


def mean(rows_ND: Tensor) -> Tensor:
    """The mean of some rows, zero where there is none."""
    return rows_ND.mean(dim=0) if rows_ND.shape[0] else rows_ND.new_zeros(rows_ND.shape[1])


def reference_bags(weights: Mapping[str, Tensor], batch: Batch, schema: exfm.schema.FeatureSchema) -> dict[str, Tensor]:
    """The token (B, D) of every categorical and multi-valued feature."""
    return {
        feature.name: torch.stack([mean(weights[feature.table_name][ids]) for ids in bags_of(batch, feature.name)])
        for feature in schema.features
        if isinstance(feature, exfm.schema.CategoricalFeature | exfm.schema.MultiValuedFeature)
    }


def reference_events(
    weights: Mapping[str, Tensor], linears: nn.ModuleDict, batch: Batch, feature: exfm.schema.SequenceFeature
) -> list[Tensor]:
    """Events (T_i, D) of every example's history: the sum of its ids' rows, plus its numbers projected."""
    sequence = batch.sequences[feature.name]
    fields = [field for field in feature.fields if field.kind == "categorical"]
    rows = [weights[feature.table_name(field)][sequence.ids_EC[:, i]] for i, field in enumerate(fields)]
    if (child := f"sequence_{feature.name}") in linears:
        rows.append(sequence.dense_EG @ linears[child].weight.T + linears[child].bias)  # type: ignore[operator]
    return list(torch.stack(rows).sum(dim=0).split(sequence.offsets.diff().tolist()))


def reference_step(name: str, weight: Tensor, lr: float, eps: float) -> Tensor:
    """A table after its first step with an optimizer, from the whole gradient of each row."""
    gradient = weight.grad
    assert gradient is not None
    square = gradient**2
    if name == "sgd":
        return weight.detach() - lr * gradient
    state = square.mean(dim=1, keepdim=True) if name == "rowwise_adagrad" else square
    return weight.detach() - lr * gradient / (state.sqrt() + eps)
