"""Builds the served module of an arm and puts it on devices; a component's refusal names its key in the file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch

from exfm.config.checks import Arm
from exfm.config.inputs import ModelInput
from exfm.errors import ConfigError, RunError
from exfm.interfaces.input_spec import EXAMPLE
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.modeling.growth import Growth
from exfm.modeling.ranking_model import RankingModel

_PARAMETER_FIELDS = {"backbone", "sequence_encoder", "embedding_dim", "embedding_init", "dense_tokens", "head_hidden"}
"""Names the fields of a model's section that decide its parameters, beside its features and tasks."""


def build_model(arm: Arm, schema: FeatureSchema) -> RankingModel:
    """Builds the served model of an arm, its tables on the meta device.

    Raises:
        ConfigError: a component refuses its config or its inputs.
    """
    inputs = list(map(_with_width, arm.inputs))
    try:
        return RankingModel(arm.config, schema, arm.tasks, inputs, arm.labels)
    except ValueError as error:
        raise ConfigError(f"models.{arm.base}: {error}") from error


def _with_width(entry: ModelInput) -> ModelInput:
    """Sets the width of a whole representation, read from the teacher's network on the meta device."""
    if entry.source is None:
        return entry
    # A fork of the generator, because building on the meta device draws numbers too.
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        width = build_model(entry.source.arm, entry.source.schema).backbone.output_dim
    return replace(entry, inputs=replace(entry.inputs, widths={EXAMPLE: width}))


def parallelize(plan: ParallelPlan, model: RankingModel, arm: Arm) -> ParallelModel:
    """Distributes a model over the devices of a plan; changes the model itself.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        return plan.parallelize(model, arm.config.optimizer.tables)
    except (MemoryError, RuntimeError) as error:
        # torch's CPU allocator raises a plain RuntimeError ("can't allocate memory"); only its text tells it apart.
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "t allocate memory" not in str(error):
            raise
        rows, dim = model.featurizer.table_rows, model.featurizer.dim
        largest = max(rows, key=lambda table: rows[table])
        raise RunError(
            f"models.{arm.base}: no memory for its tables, {sum(rows.values()) * dim * 4:,} bytes without the state of "
            f"their optimizer; the largest is {largest!r}, {rows[largest]:,} rows of {dim} numbers. `exfm plan CONFIG` "
            "says what a process needs, and what would make it fit"
        ) from error


def build_growth(arm: Arm, schema: FeatureSchema, seed: int) -> Growth:
    """Builds the growth of an arm's snapshots to the schema's present table sizes.

    Args:
        arm: the arm whose snapshots are loaded.
        schema: the stream's schema, which says how many rows tables have now.
        seed: the experiment's.
    """
    return Growth(schema, arm.config.embedding_init, seed_of(seed, arm, schema))


def seed_of(seed: int, arm: Arm, schema: FeatureSchema) -> int:
    """Hashes the experiment's seed and a model's shape into the seed of the model's initial weights.

    Models of equal shape start from equal weights, whatever their names, traffic, optimizers, batches and transfer. The
    hash leaves out teacher inputs and states, because they draw from a fork of the generator: all other weights are
    those of the same model without them. It leaves out the number of a table's rows, because a table may grow while a
    run goes on.
    """
    config = arm.config
    shape = {
        **config.model_dump(mode="json", include=_PARAMETER_FIELDS),
        "features": [feature.name for feature in schema.select(config.features).features],
        "tasks": list(arm.tasks),
    }
    digest = hashlib.sha256(json.dumps([seed, config.init_seed, shape], sort_keys=True).encode()).digest()
    # Seven bytes, because a torch seed is a signed 64-bit integer.
    return int.from_bytes(digest[:7], "big")
