"""`exfm new-plugin`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from exfm import __version__
from exfm.cli.context import Session
from exfm.errors import ConfigError, suggestion
from exfm.registry.hooks import HOOK_BY_KIND, INTERFACES
from exfm.registry.registry import Registry

_NAME = re.compile(r"(?=.{1,32}$)[a-z][a-z0-9]*(_[a-z0-9]+)*")
_NOT_TEXT_IN_YAML = ("n", "no", "null", "false", "off", "on", "true", "y", "yes")
_ENDINGS = {
    "backbone": "Backbone",
    "sequence_encoder": "Encoder",
    "transfer_strategy": "Strategy",
    "teacher_input": "Input",
    "task_head": "Head",
    "metric": "Metric",
    "data_source": "Source",
    "parallel_plan": "Plan",
    "launcher": "Launcher",
    "tracker": "Tracker",
}
"""Ending of the class name of a component, by kind; in lower case, its module."""


@dataclass(frozen=True)
class Project:
    """Describes a distribution to write.

    Args:
        name: the component's.
        kind: the component's.
    """

    name: str
    kind: str

    @property
    def distribution(self) -> str:
        """Name of the distribution and of its folder."""
        return f"exfm-plugin-{self.name.replace('_', '-')}"

    def files(self) -> dict[str, str]:
        """Maps the path of each file to its template."""
        package, kind = f"exfm_plugin_{self.name}", self.kind
        files = {
            "pyproject.toml": "pyproject.toml",
            "README.md": "README.md",
            ".gitignore": "gitignore",
            ".github/workflows/test.yaml": "test.yaml",
            f"{package}/__init__.py": "init.py",
            f"{package}/py.typed": "py.typed",
            f"{package}/{_ENDINGS[kind].lower()}.py": f"{kind}/component.py",
            f"examples/{self.name}.yaml": f"{kind}/example.yaml",
            f"tests/test_{self.name}.py": f"{kind}/test.py",
        }
        # A data source has an example to read; models of other kinds read a simulated stream.
        if kind == "data_source":
            files["examples/log.csv"] = "data_source/log.csv"
        return files

    def words(self) -> dict[str, str]:
        """Computes the variables of the templates."""
        ending = _ENDINGS[self.kind]
        class_name = "".join(map(str.capitalize, self.name.split("_"))) + ending
        return {
            "name": self.name,
            "kind": self.kind,
            "kind_words": self.kind.replace("_", " "),
            "distribution": self.distribution,
            "package": f"exfm_plugin_{self.name}",
            "module": ending.lower(),
            "cls": class_name,
            "hook": HOOK_BY_KIND[self.kind],
            "tests": _tests_of(self.kind),
            "version": __version__,
        }


def _tests_of(kind: str) -> str:
    """Names the kit's class for the component that is written: a transfer strategy that adds a loss."""
    interface = "DistillationStrategy" if kind == "transfer_strategy" else INTERFACES[kind].rpartition(":")[2]
    return f"{interface}Tests"


def command(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the component in experiments: letters, digits, _ or -.")],
    kind: Annotated[str, typer.Option(metavar="KIND", help=f"One of {', '.join(HOOK_BY_KIND)}.")] = "backbone",
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to make the folder exfm-plugin-NAME.")] = Path(),
) -> None:
    """Writes a complete distribution: a component that works, its tests, an example, README and CI."""
    session: Session = context.obj
    project = checked_project(name, kind, session.registry)
    folder = out / project.distribution
    write_project(project, folder)
    typer.echo(f"{folder}: {kind.replace('_', ' ')} {project.name!r}, which works and passes its tests. Next:")
    typer.echo(f"  pip install --editable '{folder}[test]'\n  pytest {folder}")


def checked_project(raw_name: str, kind: str, registry: Registry) -> Project:
    """Checks a name and a kind, and describes their distribution.

    Raises:
        ConfigError: no component can have that name and kind.
    """
    if kind not in HOOK_BY_KIND:
        raise ConfigError(f"--kind: no kind of component is called {kind!r}.{suggestion(kind, HOOK_BY_KIND)}")
    # A package's name has underscores, so both spellings are the same component.
    name = raw_name.replace("-", "_")
    if not _NAME.fullmatch(name):
        near = re.sub(r"[^a-z0-9]+", "_", raw_name.lower()).strip("_0123456789")
        hint = f" Did you mean {near!r}?" if _NAME.fullmatch(near) else ""
        raise ConfigError(
            "NAME is a lower-case letter, then letters, digits and single _ or -, at most 32 in all; "
            f"given: {raw_name!r}.{hint}"
        )
    if name.startswith("exfm_plugin_"):
        raise ConfigError(
            f"NAME is written without exfm-plugin-: {name.removeprefix('exfm_plugin_')!r}; given: {raw_name!r}"
        )
    if name in _NOT_TEXT_IN_YAML:
        raise ConfigError(f"NAME would be no text in YAML, where {name} has a meaning of its own; given: {raw_name!r}")
    if name in registry.names(kind):
        raise ConfigError(
            f"{kind} {name!r} is taken by {registry.provider(kind, name).provider}: two plugins that offer one name "
            "are both refused; choose another"
        )
    return Project(name, kind)


def write_project(project: Project, folder: Path) -> None:
    """Writes every file.

    Raises:
        ConfigError: the folder exists, or cannot be written.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exfm.cli", "templates/new_plugin"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        autoescape=False,
    )
    words: dict[str, Any] = project.words()
    # All are rendered before any is written, so that an error leaves no half distribution.
    rendered: dict[str, str] = {}
    for path, template in project.files().items():
        rendered[path] = environment.get_template(f"{template}.j2").render(words)
    try:
        folder.mkdir(parents=True)  # fails on a folder that exists, whose files are the user's
        for path, text in rendered.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except FileExistsError as error:
        raise ConfigError(f"{folder} exists already; remove it, or choose another name or --out") from error
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error}") from error
