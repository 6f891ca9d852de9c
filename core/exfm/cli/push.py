"""`exfm push`."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    export: Annotated[str, typer.Argument(metavar="EXPORT_DIR", help="The folder of an export, any fsspec URL.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="hf://OWNER/NAME, mlflow:NAME, or a folder.")],
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Where MLflow is; by default MLFLOW_TRACKING_URI.")
    ] = None,
    public: Annotated[
        bool,
        typer.Option("--public", help="Make a repository that is created on the Hub public."),
    ] = False,
) -> None:
    """Sends an export with its model card to the Hugging Face Hub, MLflow's model registry or a folder."""
    from exfm.serving.push import parse_target, push

    address, description = push(export, parse_target(target, tracking_uri, public))
    files = ", ".join(["README.md", "inputs.json", *description.files])
    typer.echo(f"{address}: {description.model}, snapshot {description.snapshot}: {files}")
