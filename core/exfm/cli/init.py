"""`exfm init`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.errors import ConfigError
from exfm.redaction import without_credentials

if TYPE_CHECKING:
    from exfm.inspection.draft import Draft
    from exfm.inspection.models import DraftModels

_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*")
_MOST_LAG_S = 600
"""Longer than most serving systems take from an impression to a changed row."""


def command(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder of Parquet files, a file or a glob; any fsspec URL.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file to write; NAME.yaml by default.")
    ] = None,
) -> None:
    """Looks at a log and writes an experiment over it: columns, labels, table sizes, an FM, a VM and its control."""
    import time

    from exfm.inspection.draft import draft_schema
    from exfm.inspection.log import read_log
    from exfm.inspection.models import draft_models
    from exfm.inspection.sample import read_sample

    name = _experiment_name(path)
    out = out or Path(f"{name}.yaml")
    if out.exists():
        raise ConfigError(f"{out} exists already; remove it, or choose another file with --out")
    log = read_log(path)
    draft = draft_schema(log, read_sample(log), now_us=time.time_ns() // 1_000)
    text = render(name, draft, draft_models(draft))
    if without_credentials(path) != path:
        typer.echo("warning: user and password of the path are not written: put ${oc.env:NAME} for each ***", err=True)
    try:
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}") from error
    for warning in draft.warnings:
        typer.echo(f"warning: {warning}", err=True)
    labels = ", ".join(str(entry["name"]) for entry, _ in draft.labels)
    typer.echo(
        f"{out}: {len(draft.features)} features, labels {labels}, windows of {draft.time.window}; "
        f"{len(draft.left_out)} columns left out. Read it, then:"
    )
    file = shlex.quote(str(out))
    typer.echo(f"  exfm validate {file}\n  exfm run {file} --windows 2")


def render(name: str, draft: Draft, models: DraftModels) -> str:
    """Renders the experiment file."""
    import jinja2

    # Undefined names are errors: a slip in the template must not write a file with holes.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exfm.cli", "templates/init"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters |= {"scalar": yaml_scalar, "flow": yaml_flow}
    time = draft.time
    return environment.get_template("experiment.yaml.j2").render(
        name=name,
        rows=f"{draft.sample.rows:,}",
        log_rows=f"{draft.log.rows:,}",
        is_whole=draft.sample.is_whole,
        warnings=list(map(_line, draft.warnings)),
        window=time.window,
        start=time.start,
        skip_bad_rows=time.has_missing,
        path=without_credentials(draft.log.url),
        example_id=draft.example_id,
        is_numbered=draft.is_numbered,
        event_time=time.column,
        time_unit=time.unit,
        group=draft.group.name if draft.group else "",
        labels=draft.labels,
        features=draft.features,
        left_out={_line(column): _line(reason) for column, reason in draft.left_out.items()},
        has_sequences=any(feature.kind == "sequence" for feature in draft.features),
        states=models.states,
        lag=_lag(time.window_s),
        student_features=models.student_features,
    )


def yaml_scalar(value: Any) -> str:
    """Writes a value in YAML: text is quoted where YAML would read it as anything else."""
    import json

    import yaml

    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML


def yaml_flow(value: Any) -> str:
    """Writes a mapping or a list in YAML's flow style."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_flow, value)) + "]"
    return yaml_scalar(value)


def _line(text: str) -> str:
    """Keeps a comment on its line, because names of columns may hold line breaks."""
    return " ".join(text.split())


def _lag(window_s: int) -> str:
    """Returns a lag that is short beside a window."""
    seconds = max(1, min(_MOST_LAG_S, window_s // 6))
    return f"{seconds // 60}m" if seconds % 60 == 0 else f"{seconds}s"


def _experiment_name(path: str) -> str:
    """Returns the name of an experiment over a log: the last name of its path that has letters and no wildcard."""
    for text in reversed(path.split("/")):
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", text.removesuffix(".parquet")).strip("-_")
        if name and not re.search(r"[*?\[]", text) and "=" not in text:
            return name if name[0].isalpha() else f"log-{name}"
    return "log"
