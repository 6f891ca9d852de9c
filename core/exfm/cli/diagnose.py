"""`exfm diagnose`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import console, print_json
from exfm.redaction import concealed, without_credentials


def command(
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Explains why transfer pays or does not, for each taught model; writes diagnosis.json and report.html."""
    from exfm.config.run_files import CONFIG_FILE, DIAGNOSIS_FILE, REPORT_FILE, RESULTS_FILE
    from exfm.diagnosis.diagnose import diagnose
    from exfm.reporting.html import render_report
    from exfm.storage.complete_runs import check_complete
    from exfm.supervision.store import Store

    store = Store(run_dir)
    workspace = store.workspace
    check_complete(workspace, run_dir)
    results, config_yaml = workspace.read_json(RESULTS_FILE), workspace.read(CONFIG_FILE).decode()
    diagnosis = concealed(diagnose(store, results, config_yaml))
    workspace.write_json(DIAGNOSIS_FILE, diagnosis)
    workspace.write(REPORT_FILE, render_report(results, config_yaml, diagnosis).encode())
    if as_json:
        print_json(diagnosis)
        return

    from exfm.reporting.diagnosis_table import diagnosis_table

    console(110).print(diagnosis_table(diagnosis))
    typer.echo(without_credentials(f"report: {run_dir.rstrip('/')}/{REPORT_FILE}"))
