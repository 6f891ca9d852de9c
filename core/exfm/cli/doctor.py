"""`exfm doctor`."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import typer

from exfm.cli.stacks import STACKS, Stack, minor_release, stack_of


@dataclass(frozen=True)
class Check:
    """The installed release of a package, and the problem with it, if there is any."""

    name: str
    installed: str
    problem: str = ""


def command() -> None:
    """Checks the stack; exit status 1 when something must be installed."""
    torch_version = _version("torch")
    stack = stack_of(torch_version) if torch_version else None
    checks = [_torch(torch_version, stack), _fbgemm(stack), _check("torchrec", _version("torchrec"), stack)]
    typer.echo(f"python     {platform.python_version()} ({sys.executable})")
    for check in checks:
        typer.echo(f"{check.name:<10} {check.installed}{'  <- ' + check.problem if check.problem else ''}")
    for index, fitting in enumerate(STACKS):
        releases = ", ".join(f"{name} {fitting.minor(name)}" for name in ("torch", "fbgemm", "torchrec"))
        typer.echo(f"{'' if index else 'tested':<10} {releases}{'  (this one)' if fitting is stack else ''}")
    if not any(check.problem for check in checks):
        import torch

        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        typer.echo(f"devices    cpu, {torch.get_num_threads()} threads; {', '.join(devices) or 'no GPU'}")
        typer.echo("all good")
        return
    typer.echo(f"\nto install releases that were tested together, type:\n{_remedy(stack or STACKS[-1])}")
    raise typer.Exit(1)


def _remedy(stack: Stack) -> str:
    """Returns the lines to type: for the release of torch that is there, where it is supported."""
    torch, torchrec = f"'torch=={stack.minor('torch')}.*'", f"'torchrec=={stack.minor('torchrec')}.*'"
    if shutil.which("nvidia-smi"):
        return f"  pip install 'exfm[cuda]' {torch} 'fbgemm-gpu=={stack.minor('fbgemm')}.*' {torchrec}"
    return (
        f"  pip install 'exfm[cpu]' {torch} 'fbgemm-gpu-cpu=={stack.minor('fbgemm')}.*'\n"
        f"  pip install --no-deps {torchrec}\n"
        "On Linux add --extra-index-url with PyTorch's CPU index to the first (see pytorch.org/get-started); "
        "torchrec alone would pull CUDA."
    )


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _torch(installed: str | None, stack: Stack | None) -> Check:
    if installed and stack is None:
        return Check("torch", installed, f"tested with {STACKS[0].minor('torch')} to {STACKS[-1].minor('torch')}")
    return _check("torch", installed, stack)


def _fbgemm(stack: Stack | None) -> Check:
    cpu_version, gpu_version = _version("fbgemm-gpu-cpu"), _version("fbgemm-gpu")
    check = _check("fbgemm", cpu_version or gpu_version, stack, module="fbgemm_gpu")
    if check.problem:
        return check
    import torch

    named = f"{check.installed} ({'fbgemm-gpu-cpu' if cpu_version else 'fbgemm-gpu'})"
    if not cpu_version and not torch.version.cuda:
        return Check("fbgemm", named, "a CUDA build beside a CPU build of torch; uninstall it and take fbgemm-gpu-cpu")
    if cpu_version and torch.version.cuda and torch.cuda.is_available():
        return Check("fbgemm", named, "a CPU build beside CUDA torch and a GPU; uninstall it and take fbgemm-gpu")
    return Check("fbgemm", named)


def _check(name: str, installed: str | None, stack: Stack | None, *, module: str = "") -> Check:
    if installed is None:
        return Check(name, "missing", "not installed")
    if stack and stack.minor(name) != minor_release(installed):
        return Check(name, installed, f"torch {stack.minor('torch')} goes with {name} {stack.minor(name)}")
    try:
        import_module(module or name)
    except Exception as error:
        return Check(name, installed, f"import fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Check(name, installed)
