"""The command `exfm`: options that all commands share, and what becomes of errors."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from importlib import import_module
from types import TracebackType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from exfm import __version__
from exfm.cli.context import Session
from exfm.errors import ConfigError, RunError
from exfm.redaction import redact
from exfm.registry import entry_points
from exfm.stopping import StoppedError, heed_sigterm

_COMMANDS = {
    "run": "The whole experiment, resuming what is already committed.",
    "sweep": "One run per point of a grid of values, and their comparison.",
    "train": "One model's training, as a job of its own.",
    "supervise": "One teacher's labelling, as a job of its own.",
    "predict": "Batch predictions of a model's newest snapshot, to Parquet.",
    "export": "A model's newest snapshot for serving, with the description of its inputs.",
    "plan": "Where models would go on any number of devices, what each would hold and send, and whether it fits.",
    "validate": "Check experiment files without running them.",
    "report": "Write the HTML report again from results.json.",
    "diagnose": "Why transfer pays or does not, for each taught model of a finished run.",
    "repair": "Check a run's committed files, and take it back to before what is damaged.",
    "log": "What a run has committed, to TensorBoard or MLflow.",
    "plugins": "Every plugin: distribution, version, components, status.",
    "components": "The components that experiments can name.",
    "show": "A component's documentation, fields, defaults and provider.",
    "schema": "JSON Schema of the experiment file, with the installed plugins' fields.",
    "new-plugin": "A complete distribution exfm-plugin-NAME, with a component that works and passes its tests.",
    "doctor": "What of torch, fbgemm and torchrec fits together, and what to install.",
}


class OnceCommand(TyperCommand):
    """A command that refuses an option given twice, of which click would take the last in silence."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses the command line, as click does.

        Raises:
            BadParameter: an option that has a single value comes twice.
        """
        _, _, order = self.make_parser(ctx).parse_args(args=list(args))
        single = [one for one in order if isinstance(one, TyperOption) and not one.multiple]
        twice = next((one for one in single if single.count(one) > 1), None)
        if twice is not None:
            raise typer.BadParameter("it takes one value, and is given twice", ctx, twice)
        return super().parse_args(ctx, args)


class LazyGroup(TyperGroup):
    """Imports a command's module when the command is called, so that `exfm --help` imports none."""

    def invoke(self, ctx: Any) -> Any:
        """Calls the command; of an interrupt typer would make a status without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise typer.Exit(_interrupted(error)) from None

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, in the order of the table above."""
        return list(_COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        """The command of that name."""
        if name not in _COMMANDS:
            return None
        command = typer.Typer(add_completion=False)
        if "--help" in sys.argv[1:2]:
            command.command(name, help=_COMMANDS[name])(lambda: None)
        else:
            command.command(name, cls=OnceCommand, help=_COMMANDS[name])(
                import_module(f"exfm.cli.{name.replace('-', '_')}").command
            )
        return typer.main.get_command(command)


app = typer.Typer(
    cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich"
)


def _version(asked: bool) -> None:
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
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """Train a large model on a stream and let it teach the small models you serve."""
    context.obj = Session(tuple(block_plugin or ()))


def main() -> None:
    """Runs the command line. Exit status: 0 done, 1 the run failed, 2 the user's input is wrong."""
    try:
        _main()
    except SystemExit as leaving:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            # A thread of the connection that lets go of a tensor while the interpreter ends would abort the process,
            # and torchrun would start the whole job again.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(leaving.code if isinstance(leaving.code, int) else 0)
        raise


def _main() -> None:
    # Threads that wait by spinning make a run ten times slower on a machine that does anything else; read when
    # torch is loaded, which is later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # torchrec warns about torch's own deprecations while it is imported; a user can do nothing about them.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    # fbgemm 1.7 warns many times that it does not know its torch; `exfm doctor` knows which fits.
    logging.getLogger().addFilter(lambda record: "_fbgemm_torch_compat_table" not in str(record.msg))
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.setLogRecordFactory(_redacted_record)
    sys.excepthook = _print_traceback
    debug = "--debug" in sys.argv
    try:
        heed_sigterm()
        typer.main.get_command(app)()  # calling the app would put another hook for tracebacks in place
    except (ConfigError, RunError) as error:
        if debug:
            raise
        typer.echo(f"error: {error}{'' if isinstance(error, ConfigError) else _damage()}", err=True)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except KeyboardInterrupt as error:
        sys.exit(_interrupted(error))
    except ModuleNotFoundError as error:
        if debug or (error.name or "").partition(".")[0] not in ("torch", "torchrec", "fbgemm_gpu"):
            raise
        typer.echo(f"error: {error.name} is not installed; `exfm doctor` says what to install", err=True)
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split()) or "no memory left" * isinstance(error, MemoryError)
        if isinstance(error, MemoryError) or "t allocate memory" in text or "out of memory" in text:
            text += "; `exfm plan CONFIG` says what a process needs, and what would make it fit"
        text = redact(f"{type(error).__name__}: {text}")
        typer.echo(f"error: {text} (--debug shows the traceback){_damage()}", err=True)
        sys.exit(1)


def _interrupted(error: KeyboardInterrupt) -> int:
    """Says that a job was ended; the exit status is that of the signal."""
    terminated = isinstance(error, StoppedError)
    how = "ended by SIGTERM" if terminated else "interrupted"
    typer.echo(f"{how}; what is committed is kept, and the same command goes on from there", err=True)
    return 128 + (signal.SIGTERM if terminated else signal.SIGINT)


def _redacted_record(*arguments: Any, **named: Any) -> logging.LogRecord:
    """Makes a log record whose message has no secrets, whoever prints it."""
    record = logging.LogRecord(*arguments, **named)
    record.msg, record.args = redact(record.getMessage()), None
    return record


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Prints a traceback without secrets."""
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))


def _damage() -> str:
    """What to add to an error that may come of it: pydantic, torch and others read the entry points of everything."""
    damaged = [found.distribution for found in entry_points.find() if found.entry_point is None]
    return f"; {damaged[0]} is damaged: its entry_points.txt cannot be read; install it again" if damaged else ""


if __name__ == "__main__":
    main()
