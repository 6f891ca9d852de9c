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
    """Holds the installed release of a package, and the problem with it, if any."""

    name: str
    installed: str
    problem: str = ""


def command() -> None:
    """Checks the stack; exit status 1 when something must be installed."""
    # torch decides on the stack, because fbgemm is compiled against it.
    torch_version = _installed_version("torch")
    stack = stack_of(torch_version) if torch_version else None
    checks = [
        _torch(torch_version, stack),
        _fbgemm(stack),
        _check_package("torchrec", _installed_version("torchrec"), stack),
    ]
    typer.echo(f"python     {platform.python_version()} ({sys.executable})")
    for check in checks:
        remark = f"  <- {check.problem}" if check.problem else ""
        typer.echo(f"{check.name:<10} {check.installed}{remark}")
    heading = "tested"
    for fitting in STACKS:
        releases = ", ".join(f"{name} {fitting.minor(name)}" for name in ("torch", "fbgemm", "torchrec"))
        remark = "  (this one)" if fitting is stack else ""
        typer.echo(f"{heading:<10} {releases}{remark}")
        heading = ""
    if not any(check.problem for check in checks):
        import torch

        devices = list(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
        typer.echo(f"devices    cpu, {torch.get_num_threads()} threads; {', '.join(devices) or 'no GPU'}")
        typer.echo("all good")
        return
    typer.echo(f"\nto install releases that were tested together, type:\n{_remedy(stack or STACKS[-1])}")
    raise typer.Exit(1)


def _remedy(stack: Stack) -> str:
    """Writes the commands that install a stack on this machine."""
    torch, torchrec = f"'torch=={stack.minor('torch')}.*'", f"'torchrec=={stack.minor('torchrec')}.*'"
    # nvidia-smi comes with the driver, so it is the sign of a GPU even before torch is installed.
    if shutil.which("nvidia-smi"):
        return f"  pip install 'exfm[cuda]' {torch} 'fbgemm-gpu=={stack.minor('fbgemm')}.*' {torchrec}"
    return (
        f"  pip install 'exfm[cpu]' {torch} 'fbgemm-gpu-cpu=={stack.minor('fbgemm')}.*'\n"
        f"  pip install --no-deps {torchrec}\n"
        "On Linux add --extra-index-url with PyTorch's CPU index to the first (see pytorch.org/get-started); "
        "torchrec alone would pull CUDA."
    )


def _installed_version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _torch(installed: str | None, stack: Stack | None) -> Check:
    if installed and stack is None:
        return Check("torch", installed, f"tested with {STACKS[0].minor('torch')} to {STACKS[-1].minor('torch')}")
    return _check_package("torch", installed, stack)


def _fbgemm(stack: Stack | None) -> Check:
    cpu_version, gpu_version = _installed_version("fbgemm-gpu-cpu"), _installed_version("fbgemm-gpu")
    check = _check_package("fbgemm", cpu_version or gpu_version, stack, module="fbgemm_gpu")
    if check.problem:
        return check
    import torch

    # Builds of fbgemm and torch must match, or operators of fbgemm fail to load.
    named = f"{check.installed} ({'fbgemm-gpu-cpu' if cpu_version else 'fbgemm-gpu'})"
    if not cpu_version and not torch.version.cuda:
        return Check("fbgemm", named, "a CUDA build beside a CPU build of torch; uninstall it and take fbgemm-gpu-cpu")
    if cpu_version and torch.version.cuda and torch.cuda.is_available():
        return Check("fbgemm", named, "a CPU build beside CUDA torch and a GPU; uninstall it and take fbgemm-gpu")
    return Check("fbgemm", named)


def _check_package(name: str, installed: str | None, stack: Stack | None, *, module: str = "") -> Check:
    """Checks that a package is installed in the release of a stack, and that it can be imported."""
    if installed is None:
        return Check(name, "missing", "not installed")
    if stack and stack.minor(name) != minor_release(installed):
        return Check(name, installed, f"torch {stack.minor('torch')} goes with {name} {stack.minor(name)}")
    try:
        import_module(module or name)
    except Exception as error:  # a broken build raises anything: OSError, RuntimeError, ImportError
        return Check(name, installed, f"import fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Check(name, installed)
