"""Teachers from elsewhere: their supervision, read when a run needs it."""

from __future__ import annotations

from collections.abc import Collection

from exfm.config.external_files import ExternalFiles
from exfm.config.loading import Experiment
from exfm.supervision.external import ExternalSupervision


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
