"""`exfm sweep`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session, console
from exfm.errors import RunError
from exfm.mappings import defined
from exfm.redaction import without_credentials

if TYPE_CHECKING:
    from exfm.experiment.sweep import Point, Sweep


def command(
    context: typer.Context,
    config: CONFIG,
    over: Annotated[
        list[str],
        typer.Option(metavar="KEY=A,B,...", help="A key and its values; each --over is an axis."),
    ],
    overrides: OVERRIDES = None,
    jobs: Annotated[int, typer.Option(min=1, help="Points run at once, each in a separate process.")] = 1,
) -> None:
    """Runs an experiment at every point of a grid, and compares."""
    from exfm.experiment.sweep import open_points, parse_axes, plan_sweep, run_in_subprocess, run_points, take_over

    session: Session = context.obj
    sweep = plan_sweep(config, parse_axes(over), overrides or [], session.block)
    groups = open_points(sweep)
    count = sum(map(len, groups))
    typer.echo(f"{len(sweep.points)} points, {count} to run", err=True)

    def run_separately(point: Point) -> None:
        run_in_subprocess(point, config, session.block, jobs)

    # A single job runs in this process, which has imported torch already.
    run_point = _run if jobs == 1 else run_separately
    errors: dict[str, str] = {}
    done = 0
    failed: set[str] = set()
    for group in groups:
        for point in group:
            take_over(point, failed)
        for point, error in run_points(group, run_point, jobs):
            done += 1
            state = "complete"
            if error:
                state = f"failed: {error}"
                errors[point.label] = error
                failed.add(point.folder)
            typer.echo(f"[{done}/{count}] {point.label}: {state}", err=True)
    _compare(sweep, errors)
    if errors:
        raise RunError(f"{len(errors)} of {len(sweep.points)} points failed; the same command runs them again")


def _run(point: Point) -> None:
    from exfm.experiment.run import run
    from exfm.reporting.progress import StreamProgress

    with StreamProgress(point.label) as progress:
        run(point.experiment, progress.update, on_window=progress.window)


def _compare(sweep: Sweep, errors: dict[str, str]) -> None:
    """Prints the tables, and writes sweep.json, the page and the picture."""
    from exfm.config.run_files import RESULTS_FILE
    from exfm.reporting.sweep_comparisons import sweep_comparison_table
    from exfm.reporting.sweep_ratios import sweep_ratio_table
    from exfm.reporting.sweep_summary import (
        PAGE_FILE,
        PLOT_FILE,
        SWEEP_FILE,
        PointResult,
        render_png,
        render_sweep,
        summarize,
        sweep_table,
    )
    from exfm.storage.workspace import Workspace

    workspace = Workspace(sweep.folder)
    workspace.sweep()
    points = []
    for point in sweep.points:
        folder = point.experiment.run_dir.rpartition("/")[2]
        error = errors.get(point.label, "")
        # Results of a point that failed are those of an earlier sweep.
        results = None if error else workspace.read_json(f"{folder}/{RESULTS_FILE}")
        points.append(PointResult(point.values, folder, results, error))
    summary = summarize(sweep.name, sweep.axes, points)
    workspace.write_json(SWEEP_FILE, summary)
    workspace.write(PAGE_FILE, render_sweep(summary).encode())
    picture = render_png(summary)
    if picture is None:
        workspace.remove_file(PLOT_FILE)  # left by an earlier sweep
    else:
        workspace.write(PLOT_FILE, picture)
    tables = (sweep_table(summary), sweep_comparison_table(summary), sweep_ratio_table(summary))
    console(140).print(*defined(tables), sep="\n")
    typer.echo(without_credentials(f"comparison: {sweep.folder}/{PAGE_FILE}"))
