"""Fixtures shared by all tests: experiments on disk, plugin distributions, and the command line in this process."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import sysconfig
import textwrap
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, settings

from tests.processes import leave_plots_out, run_exfm, run_module

_ANY_CASE = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.register_profile("default", _ANY_CASE, max_examples=10, derandomize=True)
settings.register_profile("soak", _ANY_CASE, max_examples=1_000)
settings.load_profile("default")

LONG = (
    "training/test_parallel.py", "serving/test_export.py", "docs/test_recipes.py", "training/test_stream_loop.py",
    "cli/test_sweep.py", "examples/test_distributions.py", "examples/test_notebooks.py", "cli/test_new_plugin.py",
    "plugins/test_pyramid.py", "training/test_jobs.py", "docs/test_tutorial.py", "training/test_chunk_rows.py",
    "planning/test_plan.py", "examples/test_paper.py", "training/test_sharing.py", "training/test_teacher_inputs.py",
)  # fmt: skip
"""The files that take longest, which come first: at the end one process would wait for the other."""

LAST = ("cli/test_new_plugin_types.py",)
"""What reads the cache of mypy, which runs beside the tests and has to read all of torch."""

EXPERIMENT = Path(__file__).with_name("experiment.yaml").read_text(encoding="utf-8")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the long files first, in their order, and what has to wait last.

    A built-in component is captured with its first fields alone; the campaign captures it with all of them.
    """
    here = Path(__file__).parent
    place = {here / name: number - len(LONG) for number, name in enumerate(LONG)} | {here / name: 1 for name in LAST}
    items.sort(key=lambda item: place.get(item.path, 0))
    exported: set[pytest.Collector | None] = set()
    for item in items:
        if item.originalname == "test_exports" and item.path.parent == here / "plugins":  # type: ignore[attr-defined]
            if item.parent in exported:
                item.add_marker(pytest.mark.soak)
            exported.add(item.parent)


DRAWN = ("reporting",)
"""Folders of tests that look at plots. Elsewhere a report lacks them, because they take as long as the training."""


@pytest.fixture(scope="module", autouse=True)
def plots_where_they_are_looked_at(request: pytest.FixtureRequest) -> Iterator[None]:
    """Leaves the drawing of plots out, and nothing else of a report, but in the folders above."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.relative_to(Path(__file__).parent).parts[0] not in DRAWN:
            leave_plots_out(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps the user's cache as it was, in processes of the tests too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """Leaves torch's thread count as it was: results are equal bit for bit only for an equal count."""
    import torch

    threads = torch.get_num_threads()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


@pytest.fixture
def experiment() -> dict[str, Any]:
    """A valid experiment that loads fast."""
    return copy.deepcopy(yaml.safe_load(EXPERIMENT))


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a tree, or text as it is, to a file of the test's own folder and returns its path."""

    def to_file(content: Any, name: str = "experiment.yaml") -> str:
        text = content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return to_file


@dataclass
class PluginFolder:
    """A folder on the path of this process, and of subprocesses, that takes plugin distributions."""

    path: Path

    def install(self, module: str, source: str, *, distribution: str = "", plugin: str = "", target: str = "") -> None:
        """One module and the distribution that offers it as a plugin, by default of the module's name."""
        self.add_module(module, source)
        name = distribution or module
        self.add_distribution(name, f"[exfm]\n{plugin or module} = {target or module}\n")

    def add_module(self, module: str, source: str) -> None:
        (self.path / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")

    def add_distribution(self, name: str, entry_points: str | bytes, metadata: str | None = None) -> None:
        info = self.path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir(exist_ok=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" if metadata is None else metadata
        (info / "METADATA").write_text(text, encoding="utf-8")
        (info / "RECORD").write_text("", encoding="utf-8")
        content = entry_points.encode() if isinstance(entry_points, str) else entry_points
        (info / "entry_points.txt").write_bytes(content)

    def exfm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The command line in a process of its own."""
        path = os.pathsep.join(filter(None, [str(self.path), os.environ.get("PYTHONPATH", "")]))
        return run_exfm(*arguments, environment={"PYTHONPATH": path})


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginFolder]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield PluginFolder(folder)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own, which sees what is installed here: torch need not be installed again."""

    folder: Path

    def __post_init__(self) -> None:
        venv.create(self.folder, symlinks=True)
        here = sysconfig.get_path("purelib")
        Path(self.site, "here.pth").write_text(f"import site; site.addsitedir({here!r})\n", encoding="utf-8")

    @property
    def site(self) -> str:
        """Where packages are installed."""
        return sysconfig.get_path("purelib", vars={"base": str(self.folder)})

    def run(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs `pip`, `pytest` or `exfm` there, without a network."""
        if command[0] in ("exfm", "pytest"):  # in a process that need not import torch anew
            return run_module(*command, packages=self.site, folder=cwd)
        program = [str(self.folder / "bin" / "python"), "-m", *command]
        # pip reads "no isolation: 0" as isolation off, and builds with what is installed.
        offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        return subprocess.run(program, env=os.environ | offline, cwd=cwd, capture_output=True, text=True)

    def check(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints that must not fail."""
        done = self.run(*command, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
        return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """A virtual environment in which nothing more is installed yet."""
    return Environment(tmp_path_factory.mktemp("environment"))


@dataclass(frozen=True)
class Outcome:
    status: int
    out: str
    err: str


@pytest.fixture
def exfm_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Calls the command line in this process."""

    def call(*arguments: str) -> Outcome:
        from exfm.cli.main import main

        monkeypatch.setattr(sys, "argv", ["exfm", *arguments])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        out, err = capsys.readouterr()
        return Outcome(status, out, err)

    return call
