"""Makes rows of any schema, models of any config, and their weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

import exfm
from exfm.config.checks import Arm
from exfm.config.experiment import ModelConfig
from exfm.modeling.build import build_model
from exfm.modeling.ranking_model import RankingModel
from exfm.registry.discovery import default_registry
from exfm_plugins.parallel.single.plan import Single


def with_columns(schema: exfm.schema.FeatureSchema) -> exfm.schema.FeatureSchema:
    """Returns the schema with a separate column for every field of a sequence."""
    features = schema.model_dump()["features"]
    for feature in features:
        for field in feature.get("fields", ()):
            field["column"] = f"{feature['name']}.{field['name']}"
    return exfm.schema.FeatureSchema.model_validate(schema.model_dump() | {"features": features})


def random_rows(schema: exfm.schema.FeatureSchema, size: int, seed: int = 0, longest: int = 9) -> pa.RecordBatch:
    """Makes rows with missing ids, empty lists and histories, and histories longer than the maximum."""
    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {
        "example_id": pa.array(np.arange(size)),
        "event_time": pa.array(np.arange(size), pa.timestamp("us", "UTC")),
    }
    for feature in schema.features:
        if isinstance(feature, exfm.schema.SequenceFeature):
            lengths = random.integers(0, longest + 1, size)
            for field in feature.fields:
                columns[field.source_column] = _lists(random, field, lengths)
            if feature.times is not None:
                columns[feature.times.column] = _times(random, lengths)
        elif isinstance(feature, exfm.schema.MultiValuedFeature):
            columns[feature.source_column] = _lists(random, feature, random.integers(0, min(longest, 3) + 1, size))
        elif isinstance(feature, exfm.schema.DenseFeature):
            columns[feature.source_column] = random.normal(5, 3, size)
        elif isinstance(feature, exfm.schema.CategoricalFeature):
            missing = random.random(size) < 0.2
            columns[feature.source_column] = pa.array(random.integers(0, 1_000, size), mask=missing)
    columns |= {label.source_column: random.integers(0, 2, size) for label in schema.labels}
    return pa.RecordBatch.from_pydict(columns)


def _lists(random: np.random.Generator, feature: Any, lengths: Any) -> pa.Array:
    total = int(lengths.sum())
    values = random.normal(size=total) if feature.kind == "dense" else random.integers(0, 1_000, total)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))


def _times(random: np.random.Generator, lengths: Any) -> pa.Array:
    """Makes times before 1970, where the times of rows begin."""
    values = pa.array(-random.integers(0, 10**14, int(lengths.sum())), pa.timestamp("us"))
    return pa.ListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32()), values)


def untaught_arm(config: dict[str, Any], schema: exfm.schema.FeatureSchema) -> Arm:
    """Makes an arm without teachers from a model's config."""
    parsed = ModelConfig.model_validate(config, context={"registry": default_registry()})
    return Arm("vm", "vm", parsed, parsed.tasks or schema.tasks, ())


def trained(arm: Arm, schema: exfm.schema.FeatureSchema) -> tuple[RankingModel, dict[str, Tensor]]:
    """Makes a model as training places it, with different weights in every layer, and returns the weights too."""
    torch.manual_seed(0)
    model = build_model(arm, schema)
    Single(Single.Config(device="cpu")).parallelize(model, arm.config.optimizer.tables)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    dense = model.featurizer.dense
    if dense is not None:
        dense.observe(torch.randn(50, dense.mean_F.numel()) * 3 + 5)
    return model.eval(), {name: value.detach().clone() for name, value in model.state_dict().items()}
