"""`exfm run`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import CONFIG, LOG_FORMAT, OVERRIDES, Session, console
from exfm.mappings import defined
from exfm.redaction import without_credentials
from exfm.reporting.log_lines import LogFormat


def command(
    context: typer.Context,
    config: CONFIG,
    overrides: OVERRIDES = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Remove the run from its folder first: start over.")] = False,
    windows: Annotated[
        int | None,
        typer.Option(
            "--windows", min=1, metavar="N", help="Stop after the first N windows with rows; call again to go on."
        ),
    ] = None,
    print_config: Annotated[bool, typer.Option(help="Print the resolved config and exit.")] = False,
    log_format: LOG_FORMAT = LogFormat.TEXT,
) -> None:
    """Runs an experiment and prints its table."""
    from exfm.config.loading import load_experiment

    session: Session = context.obj
    experiment = load_experiment(config, overrides or [], block=session.block)
    if print_config:
        typer.echo(experiment.as_yaml(), nl=False)
        return

    from exfm.config.run_files import REPORT_FILE
    from exfm.experiment.run import run, start_over
    from exfm.reporting.progress import StreamProgress
    from exfm.reporting.result_table import comparison_table, result_table
    from exfm.supervision.store import Store

    if fresh:
        start_over(Store(experiment.run_dir))
    with StreamProgress(experiment.config.name, log_format) as progress:
        results = run(experiment, progress.update, windows=windows, on_window=progress.window)
    if not results:  # this process is not the first of its job
        return
    tables = (result_table(results), comparison_table(results))
    console(110).print(*defined(tables), sep="\n")
    if results["time"]["waiting_for"]:
        typer.echo(f"it waits for {results['time']['waiting_for']}; call it again to go on")
    elif results["time"]["stopped"]:
        first = "window" if windows == 1 else f"{windows} windows"
        typer.echo(f"stopped at the end of the first {first}; without --windows it goes on")
    elif not results["time"]["windows_done"]:
        typer.echo(f"complete since {results['time']['last_commit']}, nothing was run; --fresh starts over")
    typer.echo(without_credentials(f"report: {experiment.run_dir.rstrip('/')}/{REPORT_FILE}"))
