"""`exfm up`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session
from exfm.errors import ConfigError, RunError

LAUNCHER = Annotated[
    str | None,
    typer.Option(
        "--launcher", metavar="NAME", help="The launcher; by default the file's, or else processes of this machine."
    ),
]


def command(
    context: typer.Context,
    config: CONFIG,
    overrides: OVERRIDES = None,
    launcher: LAUNCHER = None,
    until_done: Annotated[
        bool,
        typer.Option("--until-done", help="Do all that is there, teachers before students, write the report, and end."),
    ] = False,
    idle_timeout: Annotated[
        float | None,
        typer.Option(
            min=1.0, help="End, and write the report, when nothing has arrived for so many seconds; by default never."
        ),
    ] = None,
) -> None:
    """Brings up the jobs of an experiment, FM, labellers and students, and keeps them up until it is interrupted.

    The same command again starts the jobs of models that have been added, and touches no other.
    """
    if until_done and idle_timeout is not None:
        raise ConfigError("--until-done and --idle-timeout are two ends of the jobs; give either")

    from exfm.launch.graph import Commands, Ending
    from exfm.launch.groups import savings
    from exfm.launch.keeper import Keeper
    from exfm.launch.prepare import load_with_launcher, prepare_fleet

    session: Session = context.obj
    ending: Ending = "never"
    if until_done:
        ending = "done"
    elif idle_timeout is not None:
        ending = "idle"
    commands = Commands(config, overrides or [], session.block, ending, idle_timeout or 0.0)
    experiment, chosen = load_with_launcher(commands, launcher)
    if not chosen.starts_jobs():
        raise ConfigError(
            f"launcher: {chosen.name!r} starts no jobs; `exfm jobs CONFIG --format {chosen.name}` writes its files"
        )
    fleet, groups = prepare_fleet(experiment, chosen, commands, keep=True)
    # In a file too, because `exfm up` often runs where nobody reads its terminal.
    say = _Log(Path(fleet.log_dir, "up.log"))
    saved = savings(experiment, groups)
    if saved.models:
        say(str(saved))
    try:
        failed = Keeper(chosen, fleet, chosen.config.restarts, say).run()
    except ValueError as error:
        # From the launcher's ``open``: no machine can take a job.
        raise ConfigError(f"launcher: {error}") from error
    if failed:
        raise RunError(f"{len(failed)} of {len(fleet.jobs)} jobs have failed: {', '.join(failed)}; see {fleet.log_dir}")


class _Log:
    """Prints lines on stderr, and appends them to a file with the time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __call__(self, line: str) -> None:
        typer.echo(line, err=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
