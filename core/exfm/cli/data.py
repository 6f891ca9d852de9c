"""`exfm data`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import Session, console, print_json
from exfm.cli.init import yaml_flow
from exfm.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import TaskID

    from exfm.downloads.catalogue import Catalogue, Entry
    from exfm.downloads.progress import Progress


class Action(StrEnum):
    """What the command does."""

    list = "list"
    get = "get"


def command(
    context: typer.Context,
    action: Annotated[Action, typer.Argument(metavar="list|get", help="list: show all logs. get: download one.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The log to download, as `exfm data list` names it.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="The folder; by default that of the log's example.")
    ] = None,
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", help="Accept the terms of a log that restrict its use.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """Lists public logs, or downloads the files of one: resumed where a transfer was cut, verified and unpacked."""
    from exfm.downloads.catalogue import collect

    session: Session = context.obj
    catalogue = collect(session.registry)
    if action is Action.list:
        if name is not None or to is not None or accept_licence:
            raise ConfigError("`exfm data list` takes no name and no option but --json; `exfm data get NAME` downloads")
        _list(catalogue, as_json)
        return
    if name is None or as_json:
        raise ConfigError("`exfm data get NAME` downloads a log; `exfm data list` shows their names")
    _get(catalogue.find(name), to, accept_licence)


def _list(catalogue: Catalogue, as_json: bool) -> None:
    from exfm.downloads.progress import size_text

    entries = catalogue.entries.values()
    if as_json:
        print_json([_as_dict(entry) for entry in entries])
    else:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        # Not folded, because a name is to be typed.
        table.add_column("log", no_wrap=True)
        for heading in ("source", "size", "", "terms"):
            table.add_column(heading, overflow="fold")
        for entry in entries:
            log = entry.download
            size = size_text(log.size) if log.files else "-"
            table.add_row(log.name, entry.source, size, "by hand" if log.by_hand else "get", log.licence)
        console(160).print(table)
    for source, reason in catalogue.problems.items():
        typer.echo(f"warning: the data source {source} could not be asked: {reason}", err=True)


def _as_dict(entry: Entry) -> dict[str, object]:
    log = entry.download
    return {
        "name": log.name,
        "title": log.title,
        "source": entry.source,
        "size": log.size if log.files else None,
        "licence": log.licence,
        "must_accept": log.must_accept,
        "home": log.home,
        "by_hand": log.by_hand,
        "urls": [file.url for file in log.files],
        "example": log.example,
    }


def _get(entry: Entry, to: Path | None, accept_licence: bool) -> None:
    from exfm.downloads.get import get
    from exfm.downloads.progress import size_text

    log = entry.download
    folder = to or Path(log.folder)
    typer.echo(f"{log.title}\nTerms: {log.licence}\nPublisher: {log.home}")
    if log.by_hand:
        raise ConfigError(f"{log.name} cannot be downloaded by a tool: {log.by_hand}")
    if log.must_accept and not accept_licence:
        raise ConfigError(
            f"{log.name}: its terms restrict the use. Read them at {log.home}; "
            f"`exfm data get {log.name} --accept-licence` accepts them and downloads {size_text(log.size)}"
        )
    with _progress() as progress:
        paths = get(log, folder, progress)
    size = sum(path.stat().st_size for path in paths)
    typer.echo(f"{folder}: {', '.join(path.name for path in paths)} ({size_text(size)})")
    fields = {key: value.format(folder=folder) for key, value in log.fields.items()}
    typer.echo(f"In an experiment:\n  stream:\n    source: {yaml_flow({'name': entry.source, **fields})}")
    if log.example:
        typer.echo(f"A complete experiment: {log.example}")


def _progress() -> _Lines | _Bar:
    return _Bar() if sys.stderr.isatty() else _Lines()


class _Lines:
    """Prints a line for each step, and for each tenth of a long step, where there is no terminal."""

    _LONG_BYTES = 100_000_000

    def __init__(self) -> None:
        self._label, self._done, self._total, self._tenths = "", 0, 0, 0

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def begin(self, label: str, done: int, total: int | None) -> None:
        """Prints the label and the size of a step."""
        from exfm.downloads.progress import size_text

        self._label, self._done, self._total = label, done, total or 0
        self._tenths = 10 * done // self._total if self._total else 0
        size = size_text(total) if total is not None else "the server does not say how much"
        self.say(f"{label}: {size}{f', {size_text(done)} of it are here' if done else ''}")

    def advance(self, size: int) -> None:
        """Prints the share that is done at each tenth of a long step."""
        self._done += size
        tenths = 10 * self._done // self._total if self._total else 0
        if self._total > self._LONG_BYTES and tenths > self._tenths:
            self._tenths = tenths
            self.say(f"{self._label}: {10 * tenths}%")

    def say(self, line: str) -> None:
        """Prints a line on stderr."""
        typer.echo(line, err=True)


class _Bar:
    """Draws a bar of the present step on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

        columns = (*Progress.get_default_columns()[:2], DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=Console(stderr=True))
        self._task: TaskID | None = None

    def __enter__(self) -> Progress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def begin(self, label: str, done: int, total: int | None) -> None:
        """Replaces the bar by a new step's."""
        # A new task, because rich keeps the total of a task whose new total is not known.
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(label, total=total, completed=done)

    def advance(self, size: int) -> None:
        """Moves the bar."""
        assert self._task is not None
        self._bars.advance(self._task, size)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._bars.console.print(line, markup=False, highlight=False)
