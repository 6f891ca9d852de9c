"""Builds and places the served module of an arm; a component's refusal is an error with its key in the file."""

from __future__ import annotations

import hashlib
import json

import torch

from exfm.config.checks import Arm
from exfm.errors import ConfigError, RunError
from exfm.interfaces.parallel_model import ParallelModel
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.schema import FeatureSchema
from exfm.modeling.growth import Growth
from exfm.modeling.ranking_model import RankingModel

_SHAPE = {"backbone", "sequence_encoder", "embedding_dim", "embedding_init", "dense_tokens", "head_hidden"}
"""Fields of a model that decide its parameters, beside its features and tasks."""


def build_model(arm: Arm, schema: FeatureSchema) -> RankingModel:
    """The served part of an arm, its tables on the meta device.

    Raises:
        ConfigError: a component refuses its config or its inputs.
    """
    try:
        return RankingModel(arm.config, schema, arm.tasks, arm.inputs)
    except ValueError as error:
        raise ConfigError(f"models.{arm.base}: {error}") from error


def place(plan: ParallelPlan, model: RankingModel, arm: Arm) -> ParallelModel:
    """Places a model on the devices of a plan, in place.

    Raises:
        RunError: there is not enough memory.
    """
    try:
        return plan.parallelize(model, arm.config.optimizer.tables)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "t allocate memory" not in str(error):
            raise
        rows, dim = model.featurizer.table_rows, model.featurizer.dim
        largest = max(rows, key=lambda table: rows[table])
        raise RunError(
            f"models.{arm.base}: no memory for its tables, {sum(rows.values()) * dim * 4:,} bytes without the state of "
            f"their optimizer; the largest is {largest!r}, {rows[largest]:,} rows of {dim} numbers. `exfm plan CONFIG` "
            "says what a process needs, and what would make it fit"
        ) from error


def growth_of(arm: Arm, schema: FeatureSchema, seed: int) -> Growth:
    """What brings an arm's snapshots to the rows that the schema's tables have now. ``seed``: the experiment's."""
    return Growth(schema, arm.config.embedding_init, seed_of(seed, arm, schema))


def seed_of(seed: int, arm: Arm, schema: FeatureSchema) -> int:
    """Hashes the experiment's seed and a model's shape into the seed of the model's initial weights.

    Models of equal shape start from equal weights, whatever their names, traffic, optimizers, batches and transfer. The
    hash leaves out teacher inputs and states, which draw from a fork of the generator: all other weights are those of
    the same model without them. It leaves out the number of a table's rows, which may grow while a run goes on.
    """
    config = arm.config
    shape = {
        **config.model_dump(mode="json", include=_SHAPE),
        "features": [feature.name for feature in schema.select(config.features).features],
        "tasks": list(arm.tasks),
    }
    digest = hashlib.sha256(json.dumps([seed, config.init_seed, shape], sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:7], "big")
