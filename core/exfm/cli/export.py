"""`exfm export`."""

from __future__ import annotations

from typing import Annotated

import typer

from exfm.cli.context import AT, CONFIG, MODEL, OVERRIDES, Session
from exfm.redaction import without_credentials


def command(
    context: typer.Context,
    config: CONFIG,
    model: MODEL,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="The folder to write, any fsspec URL.")],
    overrides: OVERRIDES = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also machine code for this kind of machine.")
    ] = True,
    at: AT = None,
    onnx: Annotated[bool, typer.Option("--onnx", help="Also an ONNX model, where the graph has that form.")] = False,
    requests: Annotated[
        bool,
        typer.Option(
            "--requests", help="Also a program that computes the context of a request once for all candidates."
        ),
    ] = False,
    tables: Annotated[
        str, typer.Option("--tables", metavar="fp32|int8", help="How the rows of embedding tables are stored.")
    ] = "fp32",
    figures: Annotated[
        bool,
        typer.Option(
            "--figures/--no-figures",
            help="Compute the model card's figures from predictions where results.json does not end with the snapshot.",
        ),
    ] = True,
    weights_only: Annotated[
        bool,
        typer.Option("--weights-only", help="Give the export in DIR the snapshot's weights, and compile nothing."),
    ] = False,
) -> None:
    """Writes the served layers of a model's snapshot, by default the newest, and the description of its inputs."""
    from exfm.config.loading import load_experiment
    from exfm.errors import ConfigError, suggestion
    from exfm.serving.export import Form, export
    from exfm.storage.aliases import LATEST

    if weights_only and onnx:
        raise ConfigError("--onnx: an ONNX model holds its weights: leave out --weights-only, or --onnx")
    if weights_only and requests:
        raise ConfigError("--requests: --weights-only writes no program: leave out one of the two")
    if tables not in ("fp32", "int8"):
        raise ConfigError(
            f"--tables: allowed are fp32 and int8; given: {tables!r}.{suggestion(tables, ('fp32', 'int8'))}"
        )
    if weights_only and tables != "fp32":
        raise ConfigError("--tables: --weights-only keeps the tables as the export has them: leave out one of the two")
    session: Session = context.obj
    experiment = load_experiment(config, overrides or [], block=session.block)
    form = Form(compiled, onnx, requests, "int8" if tables == "int8" else "fp32")
    written = export(experiment, model, out, form, at or LATEST, compute_figures=figures, weights_only=weights_only)
    sizes = ", ".join(f"{name} {file.bytes / 1e6:,.1f} MB" for name, file in written.files.items())
    typer.echo(f"export {model}: snapshot {written.snapshot}, trained until {written.watermark:%Y-%m-%d %H:%M} UTC")
    if written.tables != "fp32" and not written.tables_ne_loss:
        typer.echo(
            f"tables in {written.tables}: NE is not measured, because the last window's labels are alike or unknown"
        )
    for task, loss in written.tables_ne_loss.items():
        typer.echo(f"tables in {written.tables}: NE of {task} {loss:+.4%} on the last window")
    typer.echo(f"{without_credentials(out)}: inputs.json, MODEL_CARD.md, {sizes}")
