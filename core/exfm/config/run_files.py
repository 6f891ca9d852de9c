"""Names the files of a run's folder, for readers that need neither torch nor the experiment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

CONFIG_FILE: Final = "config.yaml"
RESULTS_FILE: Final = "results.json"
REPORT_FILE: Final = "report.html"
CHANGES_FILE: Final = "changes.json"
DIAGNOSIS_FILE: Final = "diagnosis.json"
RUN_FILE: Final = "run.json"

HOMES_FILE: Final = "homes.json"
"""Names the runs that train models of this run's experiment, by the name of the model here."""

SIBLING: Final = "../"
"""Begins the folder of a run that lies beside this run's, so that both can be moved together."""

FROZEN_FILE: Final = "frozen.json"
"""Lists the snapshots at which the run has frozen teachers of other runs."""

RUN_FILES: Final = (
    CONFIG_FILE, CHANGES_FILE, RESULTS_FILE, REPORT_FILE, DIAGNOSIS_FILE, HOMES_FILE, FROZEN_FILE, RUN_FILE
)  # fmt: skip
"""The files of a run that are of no model."""

JOBS_FOLDER: Final = "jobs"
TRACKING_FOLDER: Final = "tracking"
"""Remembers the newest window that each tracker has received, of trackers that cannot say so by themselves."""
MODELS_FOLDER: Final = "models"

CONTROL_SUFFIX: Final = ".control"
"""Ends the name of a control that exfm adds for ``control: true``."""


def home_url(url: str, run: str) -> str:
    """Returns the folder of a run that an entry of ``homes.json`` in another run's folder names.

    Args:
        url: the other run's folder.
        run: a folder, or the name of one beside the other run's, after ``SIBLING``.
    """
    if not run.startswith(SIBLING):
        return run
    beside, slash, _ = url.rstrip("/").rpartition("/")
    # A folder of the working directory has no slash in its name.
    return f"{beside}{slash}{run.removeprefix(SIBLING)}"


def record_file(model: str) -> str:
    """Returns the path of a model's record in its run, which is there from its first commit on."""
    return f"{MODELS_FOLDER}/{model}.json"


def draft_file(model: str) -> str:
    """Returns the path of the record of a model without commits, which may still become another model."""
    return f"{MODELS_FOLDER}/{model}.draft.json"


def recorded_names(files: Iterable[str]) -> set[str]:
    """Returns the models of which a run keeps a record or a draft, from the names of the files."""
    return {file.removesuffix(".json").removesuffix(".draft") for file in files if file.endswith(".json")}
