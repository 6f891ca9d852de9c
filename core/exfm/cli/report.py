"""`exfm report`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.redaction import without_credentials


def command(run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")]) -> None:
    """Writes report.html from results.json and config.yaml, with the diagnosis of these results if the run has any."""
    from exfm.config.run_files import CONFIG_FILE, REPORT_FILE, RESULTS_FILE
    from exfm.reporting.diagnosis_table import kept_diagnosis
    from exfm.reporting.html import render_report
    from exfm.storage.complete_runs import check_complete
    from exfm.storage.workspace import Workspace

    workspace = Workspace(run_dir)
    check_complete(workspace, run_dir)
    config = workspace.read(CONFIG_FILE).decode()
    results = workspace.read_json(RESULTS_FILE)
    page = render_report(results, config, kept_diagnosis(workspace, results))
    workspace.write(REPORT_FILE, page.encode())
    typer.echo(without_credentials(f"report: {run_dir.rstrip('/')}/{REPORT_FILE}"))
