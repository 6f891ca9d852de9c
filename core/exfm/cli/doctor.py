"""`exfm doctor`."""

from __future__ import annotations

import platform
import shutil
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

import typer

TESTED = {"torch": "2.13", "fbgemm": "1.8", "torchrec": "1.8"}
"""What the test suite runs on. Patch releases may differ."""


@dataclass(frozen=True)
class Check:
    """One finding: fine, or what to type."""

    name: str
    found: str
    problem: str = ""


def command() -> None:
    """Checks the stack; exit status 1 when something must be installed."""
    checks = [_torch(), _fbgemm(), _torchrec()]
    typer.echo(f"python     {platform.python_version()} ({sys.executable})")
    for check in checks:
        typer.echo(f"{check.name:<10} {check.found}{'  <- ' + check.problem if check.problem else ''}")
    if not any(check.problem for check in checks):
        import torch

        devices = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        typer.echo(f"devices    cpu, {torch.get_num_threads()} threads; {', '.join(devices) or 'no GPU'}")
        typer.echo("all good")
        return
    typer.echo(f"\nto install what was tested together, type:\n{_remedy()}")
    raise typer.Exit(1)


def _remedy() -> str:
    if shutil.which("nvidia-smi"):
        return "  pip install 'exfm[cuda]'"
    return (
        "  pip install 'exfm[cpu]'                       # on Linux add --extra-index-url with PyTorch's CPU index,\n"
        "  pip install --no-deps 'torchrec==1.8.0'       # see pytorch.org/get-started; torchrec alone would pull CUDA"
    )


def _found(*distributions: str) -> str | None:
    for distribution in distributions:
        try:
            return f"{version(distribution)} ({distribution})" if len(distributions) > 1 else version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _check(name: str, found: str | None, module: str) -> Check:
    if found is None:
        return Check(name, "missing", "not installed")
    if not found.startswith(f"{TESTED[name]}."):
        return Check(name, found, f"tested with {TESTED[name]}.x")
    try:
        import_module(module)
    except Exception as error:
        return Check(name, found, f"import fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
    return Check(name, found)


def _torch() -> Check:
    return _check("torch", _found("torch"), "torch")


def _fbgemm() -> Check:
    found = _found("fbgemm-gpu-cpu", "fbgemm-gpu")
    check = _check("fbgemm", found, "fbgemm_gpu")
    if check.problem or found is None:
        return check
    import torch

    gpu_build = "fbgemm-gpu-cpu" not in found
    if gpu_build and not torch.version.cuda:
        return Check("fbgemm", found, "a CUDA build beside a CPU build of torch; uninstall it and take fbgemm-gpu-cpu")
    if not gpu_build and torch.version.cuda and torch.cuda.is_available():
        return Check("fbgemm", found, "a CPU build beside CUDA torch and a GPU; uninstall it and take fbgemm-gpu")
    return check


def _torchrec() -> Check:
    return _check("torchrec", _found("torchrec"), "torchrec")
