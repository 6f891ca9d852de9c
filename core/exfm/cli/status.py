"""`exfm status`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.cli.context import RUN, console, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES = {
    "running": "green", "waiting": "yellow", "done": "dim", "stopped": "dim", "failed": "bold red", "dead": "bold red"
}  # fmt: skip


def command(
    run: RUN,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch a line of JSON for each look.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="S", help="With --watch: seconds between two looks.")] = 5.0,
) -> None:
    """Shows how a run stands: windows, lag, speed, figures, supervision, snapshots and jobs of every model."""
    from exfm.watching.run_status import RunWatch

    watcher = RunWatch(run)
    try:
        if not watch:
            _show_once(watcher.look(), as_json)
        elif as_json:
            while True:
                typer.echo(json.dumps(watcher.look(), ensure_ascii=False))
                time.sleep(every)
        else:
            from rich.live import Live

            with Live(render(watcher.look()), console=console(160), auto_refresh=False) as live:
                while True:
                    time.sleep(every)
                    live.update(render(watcher.look()), refresh=True)
    except KeyboardInterrupt:
        # With --watch an interruption is the usual end, and no error.
        if not watch:
            raise
    finally:
        watcher.close()


def _show_once(status: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(status)
    else:
        console(160).print(render(status))


def render(status: Mapping[str, Any]) -> RenderableType:
    """Builds the table of a status, and the lines of its problems below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    title = f"{status['name']} in {status['run']} at {_time(status['at'])}"
    if status["stream_until"]:
        title += f", stream until {_time(status['stream_until'])}"
    table = Table(box=None, pad_edge=False)
    headings = ("model", "window until", "behind", "rows/s", "NE", "change", "teacher", "covered", "age", "snapshot")
    for heading in (*headings, "job"):
        table.add_column(heading, overflow="fold")
    for model in status["models"]:
        table.add_row(*_cells(model), _job_text(model))
    # A job that has died is a problem of each of its models, and is shown once.
    models: dict[tuple[str, str], list[str]] = {}
    for problem in status["problems"]:
        models.setdefault((problem["kind"], problem["text"]), []).append(problem["model"])
    lines = [Text(f"{kind}: {', '.join(names)}: {text}", "red") for (kind, text), names in models.items()]
    if not lines:
        lines = [Text("nothing holds it up", "green")]
    return Group(Text(title, "bold"), table, *lines)


def _cells(model: Mapping[str, Any]) -> list[str]:
    """Formats the cells of a model's row but the last."""
    window, snapshot = model["window"], model["snapshot"]
    figures = list(model["tasks"].items())
    # The first task alone, because a row has room for a single NE.
    task = figures[0][1] if figures else {"ne": None, "ne_before": None}
    supervision = model["supervision"]
    shown = "-"
    if snapshot is not None:
        shown = "-" if snapshot["in_use"] is None else str(snapshot["in_use"])
        if snapshot["held"]:
            shown += f" ({snapshot['newest']} held)"
    return [
        model["model"],
        "-" if window is None else _time(window["end"]),
        _lag(model),
        "-" if model["rows_per_second"] is None else f"{model['rows_per_second']:,.0f}",
        "-" if task["ne"] is None else f"{task['ne']:.4f}",
        _change(task["ne"], task["ne_before"]),
        "\n".join(supervision) or "-",
        "\n".join(_share(figures["hit_rate"]) for figures in supervision.values()) or "-",
        "\n".join(_duration(figures["age_s"]) for figures in supervision.values()) or "-",
        shown,
    ]


def _lag(model: Mapping[str, Any]) -> str:
    """Formats how far a model is behind the stream and its teachers."""
    if model["lag_s"] is None:
        return "-"
    text = _duration(model["lag_s"]) if model["lag_s"] else "0"
    behind = [figures["behind_windows"] for figures in model["supervision"].values() if figures["behind_windows"]]
    return f"{text}, teacher {max(behind)} w" if behind else text


def _change(ne: float | None, before: float | None) -> str:
    if ne is None or not before:
        return "-"
    return f"{ne / before - 1:+.1%}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _duration(seconds: float | None) -> str:
    from exfm.watching.problems import duration

    return "-" if seconds is None else duration(seconds)


def _time(text: str) -> str:
    """Shortens a time, ISO 8601, to the minute."""
    return text[:16].replace("T", " ")


def _job_text(model: Mapping[str, Any]) -> Any:
    from rich.text import Text

    text = Text()
    for job, state in ((model["job"], model["state"]), (model["labelling_job"], model["labelling_state"])):
        # A job that both trains and labels is shown once.
        if job is None or (text and job == model["job"]):
            continue
        if text:
            text.append("\n")
        text.append(f"{job} ")
        text.append(str(state), _STYLES.get(str(state), ""))
    return text or Text("-")
