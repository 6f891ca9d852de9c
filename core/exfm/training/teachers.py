"""What students are told of their teachers, before any of them is trained."""

from __future__ import annotations

from collections.abc import Collection

import torch

from exfm.config.checks import Arm
from exfm.config.external_files import ExternalFiles
from exfm.config.loading import Experiment
from exfm.interfaces.schema import FeatureSchema
from exfm.interfaces.transfer_strategy import TeacherShape
from exfm.modeling.ranking_model import RankingModel
from exfm.supervision.external import ExternalSupervision


def teacher_shapes(experiment: Experiment) -> dict[str, TeacherShape]:
    """The shape of every model as a teacher, and of the teachers from elsewhere, by name."""
    shapes = {
        arm.name: TeacherShape(arm.name, arm.tasks, _embedding_dim(arm, experiment.schema)) for arm in experiment.arms
    }
    external = experiment.config.teachers.items()
    return shapes | {name: TeacherShape(name, tuple(config.predictions)) for name, config in external}


def _embedding_dim(arm: Arm, schema: FeatureSchema) -> int | None:
    """Width of the embeddings it stores; only the model itself knows, so it is built, without memory."""
    if arm.config.supervision.embedding == "none":
        return None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return int(RankingModel(arm.config, schema, arm.tasks).backbone.output_dim)


def external_teachers(experiment: Experiment, names: Collection[str]) -> dict[str, ExternalSupervision]:
    """The supervision of those of the named teachers that come from elsewhere, read into memory.

    Raises:
        ConfigError: an example id is missing or repeated, or a value is not what its kind says.
    """
    return {
        name: ExternalSupervision.load(ExternalFiles(config, f"teachers.{name}"))
        for name, config in experiment.config.teachers.items()
        if name in names
    }
