"""`exfm log`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exfm.cli.context import Session
from exfm.cli.jobs import POLL_S
from exfm.errors import ConfigError

if TYPE_CHECKING:
    from exfm.tracking.delivery import Delivery
    from exfm.tracking.run_reader import RunReader


def command(
    context: typer.Context,
    run_dir: Annotated[str, typer.Argument(metavar="RUN_DIR", help="A run's folder, any fsspec URL.")],
    tensorboard: Annotated[str | None, typer.Option(metavar="LOGDIR", help="TensorBoard's folder.")] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="MLflow's tracking URI.")] = None,
    tracker: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="Any tracker, as in the experiment: '{name: NAME, field: value}'."),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new windows until the run is done.")] = False,
) -> None:
    """Writes the committed figures of a run to trackers, such as TensorBoard; a second call adds new figures."""
    from exfm.tracking.run_reader import RunReader

    session: Session = context.obj
    sections: dict[str, Any] = {}
    for number, text in enumerate(tracker or []):
        sections[f"--tracker {number + 1}"] = text
    if tensorboard is not None:
        sections["--tensorboard"] = {"name": "tensorboard", "logdir": tensorboard}
    if mlflow is not None:
        sections["--mlflow"] = {"name": "mlflow", "uri": mlflow}
    if not sections:
        raise ConfigError("say where to: --tensorboard LOGDIR, --mlflow URI, --tracker '{name: NAME}', or several")
    reader = RunReader(run_dir)
    deliveries: dict[str, Delivery] = {}
    for option, section in sections.items():
        deliveries[option] = _delivery(session, reader, option, section)
    try:
        _log(reader, deliveries, follow)
    finally:
        for delivery in deliveries.values():
            delivery.tracker.close()


def _delivery(session: Session, reader: RunReader, option: str, section: Any) -> Delivery:
    """Builds the tracker that an option describes."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    from exfm.config.experiment import TrackerSpec
    from exfm.tracking.delivery import Delivery

    try:
        parsed = yaml.safe_load(section) if isinstance(section, str) else section
        spec = TypeAdapter(TrackerSpec).validate_python(parsed, context={"registry": session.registry})
    except yaml.YAMLError as error:
        raise ConfigError(f"{option}: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{option}: {where + ': ' if where else ''}{first['msg']}") from error
    return Delivery.build(spec, reader.run, option)


def _log(reader: RunReader, deliveries: dict[str, Delivery], follow: bool) -> None:
    """Tells the windows that trackers lack, until the run is complete or, without ``follow``, once."""
    url = reader.run.url
    while True:
        # Read before the windows, because a run that completes in between has more windows than are delivered below.
        complete = reader.complete
        windows = 0
        for option, delivery in deliveries.items():
            try:
                windows += delivery.deliver(reader, {}, scored=True)
            except (ValueError, OSError) as error:  # a folder that cannot be made, a server that refuses
                raise ConfigError(f"{option}: {error}") from error
        if windows:
            typer.echo(f"{url}: {windows} windows logged")
        if complete or not follow:
            break
        time.sleep(POLL_S)
    if complete:
        from exfm.interfaces.events import RunEnded

        event = RunEnded(tuple(reader.models()), "complete", figures=reader.summaries())
        for delivery in deliveries.values():
            delivery.end(event)
    state = "complete" if complete else "under way: call again, or give --follow"
    typer.echo(f"{url}: {state}")
