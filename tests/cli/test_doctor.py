"""`exfm doctor` knows which releases fit together, and installs can only bring those."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from exfm.cli.stacks import STACKS
from tests.conftest import Outcome

ROOT = Path(__file__).parents[2]
NAMES = {"torch": "torch", "fbgemm-gpu-cpu": "fbgemm", "fbgemm-gpu": "fbgemm", "torchrec": "torchrec"}


@pytest.mark.parametrize("extra", ["cpu", "cuda"])
def test_installs_allow_every_tested_release_and_no_minor_beyond(extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {need.name: need.specifier for need in map(Requirement, project["optional-dependencies"][extra])}
    pinned = {package: name for package, name in NAMES.items() if package in ranges}
    assert {"torch", "fbgemm"} <= set(pinned.values())
    for package, name in pinned.items():
        assert all(ranges[package].contains(getattr(stack, name)) for stack in STACKS), package
        for stack, step in ((STACKS[0], -1), (STACKS[-1], 1)):
            major, minor = map(int, stack.minor(name).split("."))
            assert not ranges[package].contains(f"{major}.{minor + step}.9"), package


def test_the_environment_of_the_tests_is_a_tested_stack() -> None:
    text = (ROOT / "Makefile").read_text()
    default = [re.search(rf"^{name} := (.*)$", text, re.MULTILINE) for name in ("TORCH", "FBGEMM", "TORCHREC")]
    assert [match and match[1] for match in default] in [[s.torch, s.fbgemm, s.torchrec] for s in STACKS]


@pytest.mark.parametrize(
    ("installed", "says", "remedy"),
    [
        (("2.13.0+cpu", "1.9.0", "1.8.0"), "torch 2.13 goes with fbgemm 1.8", ("2.13", "1.8", "1.8")),
        (("2.14.1", "1.9.0", "1.8.0"), "torch 2.14 goes with torchrec 1.9", ("2.14", "1.9", "1.9")),
        (("2.14.1", "1.9.0", None), "missing  <- not installed", ("2.14", "1.9", "1.9")),
        (("2.99.0", "1.9.0", "1.9.2"), "2.99.0  <- tested with 2.12 to 2.14", ("2.14", "1.9", "1.9")),
    ],
)
def test_what_does_not_fit_is_named_with_the_line_to_type(
    installed: tuple[str | None, ...],
    says: str,
    remedy: tuple[str, str, str],
    exfm_cli: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = dict(zip(("torch", "fbgemm-gpu-cpu", "torchrec"), installed, strict=True))
    monkeypatch.setattr("exfm.cli.doctor._installed_version", versions.get)
    monkeypatch.setattr("shutil.which", lambda program: None)
    outcome = exfm_cli("doctor")
    torch, fbgemm, torchrec = remedy
    assert outcome.status == 1
    assert says in outcome.out
    assert f"'torch=={torch}.*' 'fbgemm-gpu-cpu=={fbgemm}.*'\n" in outcome.out
    assert f"pip install --no-deps 'torchrec=={torchrec}.*'" in outcome.out


def test_what_fits_is_good(exfm_cli: Callable[..., Outcome]) -> None:
    outcome = exfm_cli("doctor")
    assert outcome.status == 0, outcome.out
    assert outcome.out.endswith("all good\n")
    assert outcome.out.count("(this one)") == 1
