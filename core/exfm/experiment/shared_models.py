"""Finds the models that several points of a sweep have in common, so that a single point trains each of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import xxhash

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.model_identity import arm_section

Homes = dict[str, str]
"""Names the point that trains a model for another point, by the model's name."""


def shared_models(points: Mapping[str, Experiment], begun: Mapping[str, Homes]) -> dict[str, Homes]:
    """Chooses for each point the models that another point trains.

    A model is shared if nothing that it depends on differs: its section, the whole stream, the plan and its teachers.

    Args:
        points: the experiments of the points by their folder's name, in order.
        begun: the choices of points that were begun before, which stand.

    Returns:
        The models that other points train, by folder and name of the model.
    """
    trained_by: dict[tuple[str, str], str] = {}
    homes: dict[str, Homes] = {}
    # Points that were begun before come first, because they have trained some of their models already.
    for folder in sorted(points, key=lambda folder: folder not in begun):
        keys = model_keys(points[folder])
        homes[folder] = dict(begun.get(folder, {}))
        for model, key in keys.items():
            if folder in begun:
                if model not in homes[folder]:
                    trained_by.setdefault((model, key), folder)
            elif trained_by.setdefault((model, key), folder) != folder:
                homes[folder][model] = trained_by[model, key]
    return homes


def model_keys(experiment: Experiment) -> dict[str, str]:
    """Computes for each model a checksum of everything that it depends on."""
    resolved = experiment.as_dict()
    keys: dict[str, str] = {}
    # Teachers come before their students.
    for arm in experiment.arms:
        section = arm_section(arm, resolved)
        depends_on: dict[str, Any] = {
            "section": section,
            "stores": arm.stores,
            "labels": _labelled_traffic(experiment, arm, resolved),
            "teachers": {name: keys.get(name, resolved["teachers"].get(name)) for name in arm.teachers},
            "seed": resolved["seed"],
            "stream": resolved["stream"],
            "parallel": resolved["parallel"],
        }
        keys[arm.name] = xxhash.xxh3_128_hexdigest(json.dumps(depends_on, sort_keys=True).encode())
    return keys


def _labelled_traffic(experiment: Experiment, teacher: Arm, resolved: Mapping[str, Any]) -> list[Any]:
    """Lists the traffic of a teacher's students, which a teacher with a delay labels for them."""
    if not teacher.config.supervision.delay:
        return []
    return [resolved["models"][arm.base]["where"] for arm in experiment.arms if teacher.name in arm.teachers]
