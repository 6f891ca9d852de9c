"""`exfm search`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from exfm.cli.context import CONFIG, OVERRIDES, Session, console
from exfm.redaction import without_credentials

if TYPE_CHECKING:
    from exfm.search.arms import SearchedArm
    from exfm.search.study import TrialResult


def command(context: typer.Context, config: CONFIG, overrides: OVERRIDES = None) -> None:
    """Searches the parameters of the file's section search, and measures the best on fresh seeds."""
    from exfm.reporting.progress import StreamProgress
    from exfm.search.search import SEARCH_FILE, Search, trial_line
    from exfm.search.search_table import search_tables

    session: Session = context.obj
    search = Search(config, overrides or [], session.block)
    trials = search.section.trials

    def on_trial(arm: SearchedArm, result: TrialResult) -> None:
        typer.echo(trial_line(arm, result, trials if arm.parameters else 1), err=True)

    with StreamProgress(f"search {search.student.name}") as progress:
        # Set late, because the name of the progress is known only once the search has been checked.
        search.on_progress, search.on_window = progress.update, progress.window
        summary = search.run(on_trial)
    console(120).print(*search_tables(summary), sep="\n")
    typer.echo(without_credentials(f"results: {search.folder}/{SEARCH_FILE}"))
