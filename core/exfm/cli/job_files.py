"""`exfm jobs`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session, print_json
from exfm.errors import ConfigError, suggestion

_JSON = "json"


def command(
    context: typer.Context,
    config: CONFIG,
    overrides: OVERRIDES = None,
    output: Annotated[
        str, typer.Option("--format", metavar="NAME", help="json, or a launcher that writes files for its engine.")
    ] = _JSON,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="Write files there; by default they are printed."),
    ] = None,
    until_done: Annotated[
        bool,
        typer.Option(
            "--until-done",
            help="Jobs do all that is there and end, each after those that it waits for; by default they follow the "
            "stream, except in formats of engines that start them again.",
        ),
    ] = False,
) -> None:
    """Prints the jobs of an experiment, what each reads, writes, waits for and needs, or writes them for an engine."""
    from exfm.launch.graph import Commands
    from exfm.launch.groups import savings
    from exfm.launch.prepare import load_with_launcher, prepare_fleet

    session: Session = context.obj
    commands = Commands(config, overrides or [], session.block, "done" if until_done else "never")
    experiment, launcher = load_with_launcher(commands, None if output == _JSON else _writer(session, output))
    if output != _JSON and until_done and not launcher.files_until_done:
        raise ConfigError(
            f"--until-done: {output} starts jobs in no order, so its jobs follow the stream and wait for each other"
        )
    # The engine starts a job when those before it have ended, and jobs that follow never end.
    if output != _JSON and launcher.files_until_done:
        commands = Commands(config, commands.overrides, session.block, "done")
    # Not kept, because printing jobs starts none: a later `exfm up` is free to pack otherwise.
    fleet, groups = prepare_fleet(experiment, launcher, commands, keep=False)
    saved = savings(experiment, groups)
    if saved.models:
        typer.echo(str(saved), err=True)
    if output == _JSON:
        graph = {
            "name": fleet.name,
            "run_dir": fleet.run_dir,
            "jobs": [job.as_dict() for job in fleet.jobs],
        }
        files: Mapping[str, str] = {f"{fleet.name}.json": json.dumps(graph, indent=2) + "\n"}
        if out is None:
            print_json(graph)
            return
    else:
        files = launcher.files(fleet)
    if out is None:
        for name, text in files.items():
            # A comment in shell, YAML and Python alike.
            typer.echo(f"# {name}\n{text}")
        return
    _write(files, out)


def _writer(session: Session, name: str) -> str:
    """Checks that a launcher writes files."""
    registry = session.registry
    if name not in registry.names("launcher"):
        raise ConfigError(f"--format: no launcher is called {name!r}.{suggestion(name, [_JSON, *_writers(session)])}")
    if not registry.resolve("launcher", name).writes_files():
        raise ConfigError(
            f"--format: the launcher {name!r} writes no files.{suggestion('', [_JSON, *_writers(session)])}"
        )
    return name


def _writers(session: Session) -> list[str]:
    registry = session.registry
    return [name for name in registry.names("launcher") if registry.resolve("launcher", name).writes_files()]


def _write(files: Mapping[str, str], folder: Path) -> None:
    """Writes the files, and names each."""
    try:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            typer.echo(str(path))
    except OSError as error:
        raise ConfigError(f"--out: {folder}: {error.strerror or error}") from error
