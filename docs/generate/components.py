"""A page for every installed component, made of its docstring and its Config: the text of `exfm show`, for the site."""

from __future__ import annotations

import json
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from exfm.cli.show import describe, describe_fields
from exfm.registry.discovery import default_registry
from exfm.registry.hooks import INTERFACES
from exfm.registry.registry import Registry

ROOT = Path(__file__).parents[2]
TITLES = {
    "backbone": "Backbones",
    "sequence_encoder": "Sequence encoders",
    "transfer_strategy": "Transfer strategies",
    "teacher_input": "Teacher inputs",
    "task_head": "Task heads",
    "metric": "Metrics",
    "data_source": "Data sources",
    "parallel_plan": "Parallel plans",
    "launcher": "Launchers",
    "tracker": "Trackers",
}


def on_config(config: MkDocsConfig) -> None:
    """Puts the components into the navigation."""
    registry = default_registry()
    assert config.nav is not None
    (entry,) = (entry for entry in config.nav if "Components" in entry)
    entry["Components"] = ["components/index.md"] + [
        {TITLES[kind]: [{name: f"components/{kind}/{name}.md"} for name in registry.names(kind)]} for kind in INTERFACES
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages."""
    registry = default_registry()
    files.append(File.generated(config, "components/index.md", content="\n".join(_overview(registry))))
    for kind in INTERFACES:
        for name in registry.names(kind):
            page = "\n".join(component_page(registry, kind, name))
            files.append(File.generated(config, f"components/{kind}/{name}.md", content=page))


def _overview(registry: Registry) -> Iterator[str]:
    yield "# Components\n\nEverything that an experiment can name, as installed. `exfm show KIND.NAME` prints the same."
    for kind in INTERFACES:
        yield f"\n## {TITLES[kind]}\n\n| `{kind}` | |\n|---|---|"
        for name in registry.names(kind):
            first = (registry.resolve(kind, name).__doc__ or name).strip().splitlines()[0]
            yield f"| [{name}]({kind}/{name}.md) | {_cell(first.removesuffix('::'))} |"


def component_page(registry: Registry, kind: str, name: str) -> Iterator[str]:
    """The lines of a page."""
    described = describe(registry, kind, name)
    cls = registry.resolve(kind, name)
    plugin = registry.provider(kind, name)
    yield f"# {name}\n\nA component of kind `{kind}`, from {plugin.distribution} {plugin.version}: {_source(cls)}.\n"
    yield from _markdown(described["doc"])
    if described["cost"]:
        cost = described["cost"]
        yield (
            f"\nWith its defaults on {cost['input']}: {cost['dense_parameters']:,} dense parameters, "
            f"{cost['flops_per_example']:,} FLOPs per example forward."
        )
    yield "\n## Fields\n"
    yield from _table(described["fields"]) if described["fields"] else ["None."]
    for model in _models(cls.Config):
        yield f"\n### {model.__name__}\n\n{model.__doc__ or ''}\n"
        yield from _table(describe_fields(model))


def _source(cls: type[Any]) -> str:
    module = cls.__module__
    file = ROOT / "plugins" / (module.replace(".", "/") + ".py")
    return f"[{module}](/{file.relative_to(ROOT)})" if file.exists() else f"`{module}`"


def _table(fields: list[dict[str, Any]]) -> Iterator[str]:
    yield "| field | type | default | |\n|---|---|---|---|"
    for field in fields:
        default = "required" if field["required"] else f"`{_yaml(field['default'])}`"
        kind = field["type"].replace("'", "").replace(" | ", " or ")
        yield f"| `{field['name']}` | {_cell(kind)} | {_cell(default)} | {_cell(field['description'])} |"


def _yaml(value: Any) -> str:
    """A default as it is written in YAML; a component by its name alone."""
    if isinstance(value, dict) and "name" in value:
        return f"{{name: {value['name']}}}"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that fields of a Config consist of, each once, in order."""
    found: dict[type[BaseModel], None] = {}

    def visit(node: Any) -> None:
        if isinstance(node, type) and issubclass(node, BaseModel):
            if node in found:
                return
            found[node] = None
            for info in node.model_fields.values():
                visit(info.annotation)
        for argument in typing.get_args(node):
            visit(argument)

    visit(annotation)
    return (model for model in found if model is not annotation)


def _markdown(doc: str) -> Iterator[str]:
    """A docstring as Markdown: literal blocks are fenced, and arguments left out, since exfm passes them."""
    lines = doc.splitlines()
    while lines:
        line = lines.pop(0)
        section = re.fullmatch(r"(Args|Raises|Example)::?", line)
        if not section and not line.endswith("::"):
            yield line
            continue
        block: list[str] = []
        while lines and (not lines[0] or lines[0].startswith(" ")):
            block.append(lines.pop(0))
        text = textwrap.dedent("\n".join(block)).strip("\n")
        if section is None:
            yield f"{line.removesuffix('::')}:\n" if line != "::" else ""
            yield f"```text\n{text}\n```\n"
        elif section[1] == "Example":
            language = "yaml" if text.partition("\n")[0].endswith(":") else "python"
            yield f"**Example**\n\n```{language}\n{text}\n```\n"
        elif section[1] == "Raises":
            yield f"**Raises** {' '.join(text.split())}\n"
