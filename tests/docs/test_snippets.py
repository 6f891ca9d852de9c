"""The documentation cannot drift: its snippets run, its links resolve, its lists are complete."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import exfm
from exfm.config import experiment as sections
from exfm.config import supervision_section, training_sections
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.registry.discovery import discover
from exfm.registry.hooks import HOOK_BY_KIND

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
READMES = sorted((ROOT / "examples").rglob("README.md"))
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


def snippets(language: str) -> Iterator[Any]:
    """Each fenced block of a language: page, title and text."""
    for page in PAGES:
        for number, (found, title, text) in enumerate(FENCE.findall(page.read_text(encoding="utf-8"))):
            if found == language:
                yield pytest.param(title, text, id=f"{page_id(page)}-{number}")


EXPERIMENTS = [block for block in snippets("yaml") if block.values[1].lstrip().startswith("name:")]
SCRIPTS = [  # the page of recipes has a test of its own
    block for block in snippets("python") if not block.values[0] and "recipes.md" not in str(block.id)
]
MODULES = {block.values[0]: block.values[1] for block in snippets("python") if block.values[0]}


@pytest.mark.parametrize(("title", "text"), EXPERIMENTS)
def test_experiments_load(title: str, text: str, write: Callable[..., str]) -> None:
    path = write(text)
    if "movielens" in text:
        with pytest.raises(exfm.ConfigError, match="no file or folder"):
            exfm.load_experiment(path, ["stream.source.path=/nowhere"])
    else:
        assert exfm.load_experiment(path).arms


def test_the_first_experiment_shown_is_the_example() -> None:
    example = (ROOT / "examples/quickstart.yaml").read_text(encoding="utf-8")
    first = next(block.values[1] for block in EXPERIMENTS if str(block.id).startswith("docs/index.md"))
    assert example.endswith(first)


@pytest.mark.parametrize(("title", "text"), SCRIPTS)
def test_scripts_run(title: str, text: str) -> None:
    exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})


def test_the_tutorials_plugin_works(plugins: Any, write: Callable[..., str], tmp_path: Path) -> None:
    for name, text in MODULES.items():
        file = plugins.path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    project = tomllib.loads(next(snippets("toml")).values[1])["project"]
    entry_points = "".join(f"{name} = {target}\n" for name, target in project["entry-points"]["exfm"].items())
    plugins.add_distribution(project["name"], f"[exfm]\n{entry_points}")
    registry = discover()
    assert registry.provider("backbone", "shallow").distribution == "exfm-plugin-shallow"
    text = MODEL.format(backbone="{name: shallow, hidden: 16}", run_dir=tmp_path / "run")
    results = exfm.run(exfm.load_experiment(write(text), registry=registry))
    assert results["models"]["vm"]["tasks"]["click"]["log_loss"] < 1


MODEL = """
name: tutorial
run_dir: {run_dir}
stream:
  source: {{name: synthetic_ads, days: 1, rows_per_day: 300, users: 20, ads: 40}}
  window: 1d
models:
  vm:
    backbone: {backbone}
"""
TEACHER = """
    control: true
    transfer:
      - {name: direct, teacher: fm}
  fm:
    backbone: {name: wukong, layers: 1}
"""


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=page_id)
def test_relative_links_resolve(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page_id(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {_slug(heading) for heading in headings}, f"{page_id(page)} links to {target}"


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def test_the_page_on_experiments_names_every_key() -> None:
    text = (ROOT / "docs/run/experiments.md").read_text(encoding="utf-8")
    parts: list[type[BaseModel]] = [
        sections.ExperimentConfig, sections.StreamConfig, sections.EvaluationConfig, sections.ModelConfig,
        training_sections.OptimizerConfig, training_sections.DenseOptimizer, TableOptimizer,
        supervision_section.SupervisionConfig, training_sections.GateConfig, training_sections.InitFrom,
        sections.PluginsConfig, sections.Bucket, sections.ComparedPair, sections.ExternalTeacher, sections.RunTeacher,
        sections.PredictionColumn,
    ]  # fmt: skip
    missing = [key for part in parts for key in part.model_fields if not re.search(rf"\b{key}\b", text)]
    assert not missing


def test_the_page_on_plugins_names_every_hook() -> None:
    text = (ROOT / "docs/plugins/index.md").read_text(encoding="utf-8")
    assert [hook for hook in HOOK_BY_KIND.values() if f"`{hook}`" not in text] == []


def test_messages_that_are_explained_exist() -> None:
    headings = re.findall(r"^### `(.*)`$", (ROOT / "docs/errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    source = "".join(
        file.read_text(encoding="utf-8") for folder in ("core", "plugins") for file in (ROOT / folder).rglob("*.py")
    )
    assert len(headings) > 20
    assert [heading for heading in headings if heading not in source] == []


def test_the_page_on_results_names_every_figure(tmp_path: Path, write: Callable[..., str]) -> None:
    text = MODEL.format(backbone="{name: dlrm}", run_dir=tmp_path / "run").rstrip() + TEACHER
    results = exfm.run(exfm.load_experiment(write(text)))
    page = (ROOT / "docs/run/experiments.md").read_text(encoding="utf-8")
    assert [key for key in _keys(results) if f"`{key}" not in page and f".{key}`" not in page] == []


def _keys(node: Any) -> Iterator[str]:
    """Keys of results.json that are not names of the user's."""
    if isinstance(node, list):
        for item in node[:1]:
            yield from _keys(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key not in ("vm", "vm.control", "fm", "click", "conversion"):
                yield key
            yield from _keys(value)
