"""What a page shows in part: pieces of experiments fit the schema, and typed commands exist with their options."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
import yaml

from exfm.cli.main import _COMMANDS, app
from exfm.config.json_schema import experiment_schema
from exfm.registry.discovery import default_registry
from exfm.watching.alert_rules import read_rules

ROOT = Path(__file__).parents[2]
# A distribution of its own has components that are not installed here.
READMES = [path for path in sorted((ROOT / "examples").rglob("README.md")) if "exfm-plugin-" not in str(path)]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", *READMES]
BLOCK = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
OTHERS = {"pip", "make", "python", "torchrun", "tensorboard", "pytest", "curl", "cd", "git", "ruff", "mypy"}


def blocks(language: str) -> Iterator[Any]:
    for page in PAGES:
        for number, (found, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            if found == language:
                yield pytest.param(text, id=f"{page.relative_to(ROOT)}-{number}")


def commands(text: str) -> Iterator[list[str]]:
    joined = text.replace("\\\n", " ")
    for line in re.findall(r"^\$ (.*)$", joined, re.MULTILINE):
        yield shlex.split(line, comments=True)


RULES = [block for block in blocks("yaml") if block.values[0].startswith("rules:")]
PIECES = [block for block in blocks("yaml") if not block.values[0].lstrip().startswith(("name:", "rules:"))]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return experiment_schema(default_registry())


@pytest.mark.parametrize("text", PIECES)
def test_a_piece_of_an_experiment_fits_its_place(text: str, schema: dict[str, Any]) -> None:
    places = [schema["properties"], *(part["properties"] for part in schema["$defs"].values() if "properties" in part)]
    for key, value in yaml.safe_load(textwrap.dedent(text)).items():
        fitting = [place[key] for place in places if key in place]
        assert fitting, f"no section has the key {key}"
        validators = [jsonschema.Draft202012Validator({"$defs": schema["$defs"], **place}) for place in fitting]
        assert any(validator.is_valid(value) for validator in validators), [*validators[0].iter_errors(value)]


@pytest.mark.parametrize("text", RULES)
def test_rules_of_alerts_are_read(text: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(text, encoding="utf-8")
    assert len(read_rules(str(tmp_path / "rules.yaml")).rules) == len(yaml.safe_load(text)["rules"])


@pytest.mark.parametrize("text", [*blocks("console")])
def test_commands_exist_with_their_options(text: str) -> None:
    found = list(commands(text))
    assert found
    for words in found:
        if words[0] == "torchrun" and "exfm" in words:
            words = words[words.index("exfm") :]
        if words[0] == "exfm":
            _check_exfm(words[1:])
        elif words[0] == "make":
            targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
            assert words[1] in targets
        elif "/" in words[0] or (words[0] == "python" and words[1] != "-m"):
            script = words[0] if "/" in words[0] else words[1]
            assert (ROOT / script).exists(), words
        else:
            assert words[0] in OTHERS, words


def _check_exfm(words: list[str]) -> None:
    group: Any = typer.main.get_command(app)
    context = typer.Context(group)
    known = {option for parameter in group.params for option in parameter.opts}
    while words and words[0].startswith("--"):
        assert words[0] in known, words
        words = words[1:] if words[0] == "--debug" else words[2:]
    if not words:
        return
    assert words[0] in _COMMANDS, words
    command = group.get_command(context, words[0])
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in words[1:] if word.startswith("-") and word.partition("=")[0] not in options] == [], words
    for word in words[1:]:
        if word.endswith(".yaml") and "/" in word and not word.startswith("/"):
            assert (ROOT / word).exists(), words
