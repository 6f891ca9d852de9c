"""Tests the schema that editors read: examples name it in their first lines, and it equals the installed schema."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from exfm.config.json_schema import experiment_schema
from exfm.registry.discovery import discover

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "examples" / "exfm.schema.json"
OURS = [
    path
    for path in sorted((ROOT / "examples").rglob("*.yaml"))
    if not path.relative_to(ROOT / "examples").parts[0].startswith("exfm-plugin-")
]
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")


def example_id(path: Path) -> str:
    return str(path.relative_to(ROOT / "examples"))


def with_sentences(node: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yields every description in a schema, because editors show it; other details are pydantic's choice."""
    if isinstance(node, dict):
        if isinstance(node.get("description"), str):
            yield where, node["description"]
        for key, value in node.items():
            yield from with_sentences(value, f"{where}/{key}")


def test_the_committed_schema_has_every_built_in_field() -> None:
    others = [plugin.name for plugin in discover().plugins.values() if plugin.distribution != "exfm"]
    now = experiment_schema(discover(others))
    then = json.loads(COMMITTED.read_text(encoding="utf-8"))
    changed = set(with_sentences(now)) ^ set(with_sentences(then))
    assert not changed, "write it again: exfm schema -o examples/exfm.schema.json"


@pytest.mark.parametrize("path", OURS, ids=example_id)
def test_an_example_names_the_schema_and_fits_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    named = MODELINE.fullmatch(text.splitlines()[0])
    assert named and (path.parent / named[1]).resolve() == COMMITTED
    jsonschema.Draft202012Validator(json.loads(COMMITTED.read_text(encoding="utf-8"))).validate(yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=example_id)
def test_an_experiment_of_any_example_begins_with_the_schema_line(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert MODELINE.match(text) or "models" not in yaml.safe_load(text)


def test_all_examples_are_valid(exfm_cli: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ml-1m").mkdir()
    for name, text in MOVIELENS.items():
        (tmp_path / "ml-1m" / name).write_text(text, encoding="latin-1")
    monkeypatch.chdir(tmp_path)
    outcome = exfm_cli("validate", "--no-data", *map(str, OURS))
    assert (outcome.status, outcome.err) == (0, "")
    assert len([line for line in outcome.out.splitlines() if ": ok: " in line]) == len(OURS)


MOVIELENS = {
    "ratings.dat": "1::10::5::300\n2::10::3::100\n",
    "users.dat": "1::F::1::10::48067\n2::M::56::16::98107\n",
    "movies.dat": "10::Heat (1995)::Action\n",
}
