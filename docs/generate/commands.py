"""A page of all commands with their arguments and options, made of the same as `--help`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from exfm.cli.main import app


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the page."""
    files.append(File.generated(config, "commands.md", content="\n".join(_page())))


def _page() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    yield "# Commands\n"
    yield "`exfm COMMAND --help` prints the same. Exit status: 0 done, 1 the run failed, 2 the input is wrong.\n"
    yield "Options before the command:\n"
    yield from _table(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        arguments = [_name(parameter) for parameter in command.params if parameter.param_type_name == "argument"]
        yield f"\n## {name}\n\n`exfm {' '.join([name, *arguments])}`\n\n{command.help}\n"
        yield from _table(command)


def _table(command: Any) -> Iterator[str]:
    if not command.params:
        return
    yield "| | |\n|---|---|"
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        written = _name(parameter) if is_argument else ", ".join([*parameter.opts, *parameter.secondary_opts])
        required = " Required." if parameter.required and not is_argument else ""
        text = f"{parameter.help or ''}{required}".replace("|", "\\|")
        yield f"| `{written}` | {text} |"


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())
