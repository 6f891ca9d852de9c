"""Renders the model card of an export: model, data, figures, teachers, limitations, and how it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from omegaconf import OmegaConf

from exfm.config.checks import Arm
from exfm.config.loading import Experiment
from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE
from exfm.interfaces.data_source import utc
from exfm.mappings import map_values
from exfm.redaction import redact
from exfm.reporting.formatting import FILTERS, MISSING, gigabytes
from exfm.reporting.results import coverage_entry, model_entry
from exfm.serving.card_figures import CardFigures, card_figures
from exfm.serving.card_limits import limits
from exfm.serving.description import Description
from exfm.storage.commits import Commit
from exfm.storage.late_log import first_names
from exfm.storage.snapshots import Snapshot
from exfm.supervision.store import Store

Json = Mapping[str, Any]

_VALUES = {
    "int64": 1, "uint64": 1, "bool": True, "string": "a", "bytes": b"a", "double": 0.5,
    "timestamp": "2026-01-31T12:00:00Z",
}  # fmt: skip
"""Values of the example row by the type of its column."""


def render_card(
    experiment: Experiment,
    store: Store,
    arm: Arm,
    snapshot: Snapshot,
    description: Description,
    compute_figures: bool = True,
) -> str:
    """Renders the card in Markdown, with the metadata that the Hugging Face Hub reads in front.

    Args:
        store: the experiment's folder.
        description: of the export beside which the card is written.
        compute_figures: whether to compute figures that results.json does not have for the snapshot.
    """
    home = store.home(arm.name)
    commits: list[Commit] = []
    counters: list[Mapping[str, Any]] = []
    for commit in home.store.log.commits("train", home.model):
        if commit.window.index <= snapshot.version:
            commits.append(commit)
            counters.append(commit.counters)
    figures = card_figures(experiment, store, arm, snapshot, compute_figures)
    config = parse_resolved(home.store.workspace.read(CONFIG_FILE).decode())
    entry = model_entry(arm, counters, {})
    resolved = experiment.as_dict()
    card = _environment().get_template("model_card.md.j2")
    text = card.render(
        metadata=OmegaConf.to_yaml(OmegaConf.create(_metadata(experiment, arm, figures))),
        arm=arm,
        snapshot=snapshot,
        description=description,
        entry=entry,
        cost=_served_cost(entry),
        figures=figures,
        section=resolved["models"][arm.base],
        stream=resolved["stream"],
        source=_scalars(resolved["stream"]["source"]),
        labels=[label for label in experiment.schema.labels if label.name in arm.tasks],
        windows=[commit.window for commit in commits],
        watermark=utc(snapshot.watermark_us),
        teachers=[_teacher(name, resolved, figures, coverage_entry(commits, name)) for name in arm.teachers],
        transfer=_transfer(arm),
        init_from=counters[0].get("init_from") if counters else None,
        aliases=home.store.snapshots.aliases.names(home.model).get(snapshot.version, []),
        limits=list(limits(experiment, arm, home, snapshot, counters, figures, config)),
        seed=experiment.config.seed,
        config=config,
        row=_example_row(description),
    )
    return redact(text)


def _environment() -> Environment:
    pages = Environment(
        loader=PackageLoader("exfm.serving"),
        autoescape=False,  # Markdown: text of the user is in code spans, see `_code`
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    pages.filters |= {**FILTERS, "code": _code, "size": gigabytes, "first_names": first_names, "of_kind": _of_kind}
    return pages


def _of_kind(tasks: Mapping[str, Json], kind: str) -> dict[str, Json]:
    """Selects the figures of the tasks whose labels are of a kind."""
    return {task: figures for task, figures in tasks.items() if figures.get("kind", "binary") == kind}


def _code(value: Any) -> str:
    """Formats a value as a code span that fits into a cell of a table."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # A backtick would end the span, a bar the cell, a newline the row.
    text = " ".join(text.replace("`", "'").split()).replace("|", "\\|")
    return f"`{text}`" if text else MISSING


def _example_row(description: Description) -> dict[str, Any]:
    """Returns a row with a value for each column, without vectors, which would fill the page."""
    row: dict[str, Any] = map_values(_example, description.columns)
    return row | {feature.source_column: None for feature in description.features if feature.kind == "vector"}


def _example(kind: str) -> Any:
    """Returns a value for a column of the example row, which is no row of the data."""
    if kind.startswith("list of "):
        return [_example(kind.removeprefix("list of "))]
    if kind.endswith(" bytes"):
        return bytes(int(kind.removesuffix(" bytes")))
    return _VALUES[kind]


def _scalars(section: Json) -> dict[str, Any]:
    """Selects the settings of a source, and leaves out its columns, which the card lists for the model."""
    return {key: value for key, value in section.items() if isinstance(value, str | int | float) and value != ""}


def _served_cost(entry: Json) -> dict[str, float] | None:
    """Sums the dense parameters, and the forward FLOPs per example, of the modules that are served.

    None where no window had examples, because nothing is counted then.
    """
    if not entry["parts"].keys() - {"states"}:
        return None
    cost: dict[str, float] = {"dense_parameters": 0, "flops_per_example": 0}
    for name, counts in entry["parts"].items():
        # States are written by a teacher for its students; an export leaves them out.
        if name != "states":
            for key in cost:
                cost[key] += counts[key]
    return cost


def _transfer(arm: Arm) -> list[tuple[str, str]]:
    """Lists the strategies and inputs of a model, each with its teachers."""
    listed: list[tuple[str, str]] = []
    for strategy in arm.config.transfer:
        listed.append((strategy.name, ", ".join(strategy.config.teachers)))
    for teacher_input in arm.config.inputs:
        listed.append((teacher_input.name, teacher_input.config.teacher))
    return listed


def _teacher(name: str, resolved: Json, figures: CardFigures, coverage: Json) -> dict[str, Any]:
    """Describes a teacher: where it is trained, how much it supervised, and its gain over the same control."""
    where: Json = resolved["teachers"].get(name, {})
    if "run" in where:
        trained = f"model {_code(where['model'])} of the run {_code(where['run'])}"
    elif where:
        trained = f"elsewhere; predictions in {_code(where['path'])}"
    else:
        trained = "this run"
    gains = [gain for gain in figures.gains if gain["teacher"] == name]
    return {"name": name, "trained": trained, "gains": gains, **coverage}


def _task_type(entry: Json) -> str:
    """Names the type of a task as the Hub does."""
    return "regression" if entry.get("kind") == "regression" else "classification"


def _metadata(experiment: Experiment, arm: Arm, figures: CardFigures) -> dict[str, Any]:
    """Builds the metadata of a model repository of the Hugging Face Hub, with the figures as its results."""
    source = experiment.config.stream.source.name
    results = []
    for task, entry in figures.tasks.items():
        metrics = []
        for key, name in (("ne", "normalized entropy"), ("auc", "AUC"), ("gauc", "GAUC")):
            if entry.get(key) is not None:
                metrics.append({"type": key, "name": f"{name}, {task}", "value": entry[key]})
        if metrics:
            results.append(
                {
                    "task": {"type": f"tabular-{_task_type(entry)}", "name": task},
                    "dataset": {"type": source, "name": f"{experiment.config.name}, prequential"},
                    "metrics": metrics,
                }
            )
    metadata: dict[str, Any] = {
        "library_name": "exfm",
        "pipeline_tag": "tabular-classification",
        "tags": ["exfm", "recommendation", "ctr-prediction", *(["distillation"] if arm.teachers else [])],
    }
    if results:
        metadata["model-index"] = [{"name": arm.name, "results": results}]
    return metadata
