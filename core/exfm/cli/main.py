"""Implements the command `exfm`: options that all commands share, and the handling of errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from exfm import __version__
from exfm.cli.context import Session
from exfm.cli.messages import Messages
from exfm.errors import ConfigError, RunError
from exfm.redaction import redact
from exfm.registry import entry_points
from exfm.stopping import StoppedError, heed_sigterm

_COMMANDS = {
    "data": "List public logs, or download one: transfers are resumed, verified and unpacked.",
    "init": "Look at a log of Parquet files, and write an experiment that validates and runs.",
    "run": "Run the whole experiment, or resume it after its last committed windows.",
    "sweep": "Run an experiment at every point of a grid of values, and compare the runs.",
    "search": "Search settings of a model with Optuna, at a fixed serving cost, and measure the best on fresh seeds.",
    "train": "Train some models, as a separate job.",
    "supervise": "Label the stream with a teacher's snapshots, as a separate job.",
    "up": "Bring up all jobs of an experiment, FM, labellers and students, and keep them up.",
    "jobs": "Print the jobs of an experiment, or write them as files for an engine: Slurm, Kubernetes and others.",
    "predict": "Write batch predictions of a model's snapshot to Parquet.",
    "export": "Export a model's snapshot for serving, with the description of its inputs.",
    "serve": "Serve an export over HTTP, with new weights as they are exported.",
    "push": "Send an export to the Hugging Face Hub, to MLflow's model registry or to a folder.",
    "status": "Show how a run stands: windows, lag, figures, snapshots and jobs of every model.",
    "compare": "Compare runs: differences of config, gains with intervals, figures.",
    "ui": "Serve a read-only page that watches runs and compares them.",
    "snapshots": "List a run's snapshots: figures, size, state and aliases.",
    "promote": "Give a snapshot an alias, such as production; it is then never removed.",
    "rollback": "Move an alias back to the good snapshot that it pointed at before.",
    "plan": "Show how models would be sharded over any number of devices, the memory they take, and whether they fit.",
    "validate": "Check experiment files without running them.",
    "report": "Write the HTML report again from results.json.",
    "diagnose": "Explain why transfer pays or does not, for each taught model of a finished run.",
    "repair": "Check a run's committed files, and take it back to before any damage.",
    "vacuum": "Remove from a run's folder what nobody can ask for any more.",
    "du": "Show where the space of a run goes, by model and kind of file.",
    "alert": "Check a run by rules: lag, age, calibration, NE, held snapshots; post alerts to a webhook.",
    "log": "Write the committed figures of a run to trackers, such as TensorBoard and MLflow.",
    "plugins": "List every plugin: distribution, version, components, status.",
    "components": "List the components that experiments can name.",
    "show": "Show a component's documentation, fields, defaults and provider.",
    "schema": "Print the JSON Schema of the experiment file, with the installed plugins' fields.",
    "new-plugin": "Write a complete distribution exfm-plugin-NAME, with a component that works and passes its tests.",
    "doctor": "Check whether torch, fbgemm and torchrec fit together, and say how to install them.",
}

_MODULES = {"jobs": "job_files"}
"""Modules of commands whose names are taken: exfm.cli.jobs has the stages of a job."""


class OnceCommand(TyperCommand):
    """Refuses an option that is repeated, because click would silently take the last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line as click does.

        Raises:
            BadParameter: an option that has a single value comes twice.
        """
        # Parsed on a copy, because click's parser consumes the list, and the base class parses it again.
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        single = [option for option in order if isinstance(option, TyperOption) and not option.multiple]
        for option in single:
            if single.count(option) > 1:
                raise typer.BadParameter("it takes one value, and is given twice", ctx, option)
        return super().parse_args(ctx, args)


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called, so that `exfm --help` imports none."""

    def invoke(self, ctx: Any) -> Any:
        """Calls the command, and reports an interrupt, because typer would exit without a message."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(_interrupted(error)) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Lists the names of all commands, in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        """Builds the command of a name; None where there is none."""
        if name not in _COMMANDS:
            return None
        command = typer.Typer(add_completion=False)
        # `exfm --help` needs the short helps only, so no command's module is imported.
        if "--help" in sys.argv[1:2]:
            command.command(name, help=_COMMANDS[name])(lambda: None)
        else:
            command.command(name, cls=OnceCommand, help=_COMMANDS[name])(
                import_module(f"exfm.cli.{_MODULES.get(name, name.replace('-', '_'))}").command
            )
        return typer.main.get_command(command)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"exfm {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    block_plugin: Annotated[
        list[str] | None, typer.Option(help="Never import this plugin or distribution; may be repeated.")
    ] = None,
    debug: Annotated[bool, typer.Option(help="Show tracebacks.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """Train a large model on a stream and let it teach the small models you serve."""
    context.obj = Session(tuple(block_plugin or ()))


def main() -> None:
    """Runs the command line. Exit status: 0 done, 1 the run failed, 2 the user's input is wrong."""
    try:
        _main()
    except SystemExit as leaving:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # A thread of the process group that frees a tensor while the interpreter ends would abort the process, and
            # torchrun would restart the whole job. Without the interpreter's ending nothing flushes the streams.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leaving.code if isinstance(leaving.code, int) else 0)
        raise


def _main() -> None:
    # Threads that wait by spinning make a run ten times slower on a machine with any other load. OpenMP reads this when
    # torch is imported, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    messages = Messages(sys.argv[1:])
    messages.set_up()
    # torchrec warns about torch's own deprecations while it is imported; a user can do nothing about them.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # fbgemm 1.7 warns many times that it does not know its torch; `exfm doctor` knows which fits.
    logging.getLogger().addFilter(lambda record: "_fbgemm_torch_compat_table" not in str(record.msg))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    try:
        heed_sigterm()
        # Not app(): typer would replace the hook for tracebacks, which removes secrets.
        status = typer.main.get_command(app)(standalone_mode=not messages.as_json)
        sys.exit(status if isinstance(status, int) else 0)
    except (ConfigError, RunError) as error:
        if messages.debug:
            raise
        if isinstance(error, ConfigError):
            messages.error(str(error))
            sys.exit(2)
        messages.error(f"{error}{_damage()}")
        sys.exit(1)
    except KeyboardInterrupt as error:
        sys.exit(_interrupted(error))
    except ModuleNotFoundError as error:
        if messages.debug or (error.name or "").partition(".")[0] not in ("torch", "torchrec", "fbgemm_gpu"):
            raise
        messages.error(f"{error.name} is not installed; `exfm doctor` says what to install")
        sys.exit(1)
    except Exception as error:
        if messages.debug:
            raise
        if hasattr(error, "format_message"):  # of the command line, which typer prints where lines are no JSON
            messages.error(error.format_message())
            sys.exit(2)
        text = " ".join(str(error).split())
        if isinstance(error, MemoryError) and not text:
            text = "no memory left"
        # torch's CPU allocator raises RuntimeError ("can't allocate memory"), its CUDA allocator "out of memory".
        if isinstance(error, MemoryError) or "t allocate memory" in text or "out of memory" in text:
            text += "; `exfm plan CONFIG` says what a process needs, and what would make it fit"
        text = redact(f"{type(error).__name__}: {text}")
        messages.error(f"{text} (--debug shows the traceback){_damage()}")
        sys.exit(1)


def _interrupted(error: KeyboardInterrupt) -> int:
    """Reports that a signal ended a job, and returns the exit status of that signal."""
    how, number = "interrupted", signal.SIGINT
    if isinstance(error, StoppedError):
        how, number = "ended by SIGTERM", signal.SIGTERM
    Messages(sys.argv[1:]).notice(f"{how}; what is committed is kept, and the same command goes on from there")
    return 128 + number  # as shells do


def _damage() -> str:
    """Names a distribution with damaged entry points, which may have caused an error; empty where none is damaged."""
    # Any import may fail on it, because pydantic, torch and others read the entry points of all distributions.
    for entry in entry_points.find():
        if entry.entry_point is None:
            return f"; {entry.distribution} is damaged: its entry_points.txt cannot be read; install it again"
    return ""


if __name__ == "__main__":
    main()
