"""Teachers from elsewhere: their supervision, read when a run needs it."""

from __future__ import annotations

from collections.abc import Collection

from exfm.config.external_files import ExternalFiles
from exfm.config.loading import Experiment
from exfm.supervision.external import ExternalSupervision


def external_teachers(experiment: Experiment, names: Collection[str]) -> dict[str, ExternalSupervision]:
    """Reads the supervision of the external teachers among the named teachers into memory.

    Raises:
        ConfigError: an example id is missing or repeated, or a value is outside the range of its kind.
    """
    supervision: dict[str, ExternalSupervision] = {}
    for name, config in experiment.config.teachers.items():
        if name in names:
            supervision[name] = ExternalSupervision.load(ExternalFiles(config, f"teachers.{name}"))
    return supervision
