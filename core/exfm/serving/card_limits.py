"""Lists the limitations of a snapshot and of its figures, for the model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

from exfm.config.checks import Arm
from exfm.config.component_sources import changed_components
from exfm.config.loading import Experiment
from exfm.mappings import values_at
from exfm.reporting.formatting import duration, fixed, percent, useless_models
from exfm.serving.card_figures import CardFigures
from exfm.storage.late_log import LateLog
from exfm.storage.snapshots import Snapshot
from exfm.supervision.store import Home


def limits(
    experiment: Experiment,
    arm: Arm,
    home: Home,
    snapshot: Snapshot,
    counters: Sequence[Mapping[str, Any]],
    figures: CardFigures,
    config: Mapping[str, Any],
) -> Iterator[str]:
    """Yields a sentence for each limitation.

    Args:
        home: the run that trained the model.
        counters: the counters of the model's windows until the snapshot.
        config: the content of the run's config.yaml.
    """
    yield from _of_figures(experiment, arm, figures)
    yield from _of_data(experiment, arm, home, counters)
    yield from _of_labels(experiment, arm, snapshot)
    for task, reason in snapshot.held.items():
        yield f"The snapshot is held by the model's gate: {task}: {reason}."
    changed = changed_components(experiment, config)
    if changed:
        yield f"The code of these components has changed since the run began: {', '.join(changed)}."


def _of_figures(experiment: Experiment, arm: Arm, figures: CardFigures) -> Iterator[str]:
    yield (
        "The figures are of the stream until the snapshot, predicted before the model trained on the rows. Nothing is "
        "measured after the watermark, on other traffic, or in a product."
    )
    if figures.gains:
        yield "The interval of a gain covers the choice of groups of examples, and not that of the seed: it is one run."
    else:
        yield "The gain over a model without a teacher is not measured: there is no control."
    scored = max(values_at(figures.tasks.values(), "examples"), default=0)
    listed = max((sum(values_at(entry["windows"], "examples")) for entry in figures.tasks.values()), default=0)
    if scored < listed:
        yield f"{listed - scored:,} labelled examples at the beginning of the stream are not in the figures."
    if arm.config.optimizer.dense.ema is not None:
        yield "The snapshot holds averaged weights; the figures are those of the weights that were averaged."
    yield from useless_models({"models": {arm.name: {"tasks": figures.tasks}}})
    for task, entry in figures.tasks.items():
        if entry["base_rate"] is not None:
            yield (
                f"Probabilities of {task} suit traffic with a base rate like that of the stream, "
                f"{percent(entry['base_rate'], 2)}; predicted over observed positives were "
                f"{fixed(entry['calibration'])}."
            )
        if entry.get("mean_label") is not None:
            yield (
                f"Values of {task} suit traffic whose mean is like that of the stream, {fixed(entry['mean_label'])}; "
                f"mean prediction over mean label was {fixed(entry['calibration'])}."
            )


def _of_data(experiment: Experiment, arm: Arm, home: Home, counters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if arm.config.where:
        yield "The model has seen the traffic of `where` above only."
    skipped = sum(values_at(counters, "skipped_rows"))
    if skipped:
        yield f"{skipped:,} rows of the stream broke the schema and were left out."
    late = sum(entry.count for entry in LateLog(home.store.workspace).all(home.model))
    if late:
        yield f"{late:,} rows came after their window was committed and were not read."
    if any(label.oracle for label in experiment.schema.labels if label.name in arm.tasks):
        yield "The stream is simulated: its labels are drawn from known probabilities."


def _of_labels(experiment: Experiment, arm: Arm, snapshot: Snapshot) -> Iterator[str]:
    for label in experiment.schema.labels:
        if label.name in arm.tasks and label.delay > timedelta(0):
            delay = duration(label.delay.total_seconds())
            yield (
                f"{label.name} is known {delay} after the event: the snapshot has learned it from rows that are older "
                "than its watermark by that much."
            )
    unlearned = [task for task in arm.tasks if task not in snapshot.learned]
    if unlearned:
        tasks = ", ".join(unlearned)
        yield f"The snapshot has not learned from a label of {tasks} yet: these predictions mean nothing."
