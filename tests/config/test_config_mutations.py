"""Mutates a valid experiment file: it loads, or an error of a paragraph names the file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import count
from math import inf, nan
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.registry.discovery import default_registry

EXPERIMENT = Path(__file__).parents[1].joinpath("experiment.yaml").read_text(encoding="utf-8")
VALID: dict[str, Any] = yaml.safe_load(EXPERIMENT)
_numbers = count()


def node_paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path to every node below the top."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from node_paths(value, (*path, key))


def node_at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


PATHS = list(node_paths(VALID))
keys = st.sampled_from([str(path[-1]) for path in PATHS] + ["nme", "fm.control", "", "1", "name "]) | st.integers(0, 2)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.sampled_from([0.5, -0.0, 1e300, nan, inf, -inf]),
    st.sampled_from(["fm", "vm", "click", "ad_id", "wukong", "din", "direct", "3", "7d", "0s", "", "x" * 200, "é\n"]),
    st.sampled_from(["${name}", "${", "${models}", "${models.vm}", "${..}", "???", "\\${x}", "2026-01-01", "1e3"]),
)
copies = st.sampled_from(PATHS).map(lambda path: node_at(VALID, path))
values = st.one_of(
    scalars, copies, st.lists(scalars | copies, max_size=3), st.dictionaries(keys, scalars | copies, max_size=3)
)


@st.composite
def mutated(draw: st.DrawFn) -> dict[Any, Any]:
    """Draws the valid experiment after a few deletions, replacements, additions and renamings of nodes."""
    tree = copy.deepcopy(VALID)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(node_paths(tree)) or [("name",)]))
        parent, last = node_at(tree, path[:-1]), path[-1]
        action = draw(st.sampled_from(["delete", "replace", "rename", "add"]))
        if action == "replace":
            parent[last] = copy.deepcopy(draw(values))
        elif action in ("delete", "rename") and last in (parent if isinstance(parent, dict) else range(len(parent))):
            value = parent.pop(last)
            if action == "rename" and isinstance(parent, dict):
                parent[draw(keys)] = value
        elif isinstance(parent, dict):
            parent[draw(keys)] = copy.deepcopy(draw(values))
        else:
            parent.append(copy.deepcopy(draw(values)))
    return tree


def load(text: str, *overrides: str) -> exfm.Experiment | str:
    """Loads a file; returns the experiment, or the error message."""
    file = f"memory://mutations/{next(_numbers)}.yaml"
    with fsspec.open(file, "wt", encoding="utf-8") as stream:
        stream.write(text)
    try:
        return exfm.load_experiment(file, overrides, registry=default_registry())
    except exfm.ConfigError as error:
        text = str(error)
        assert text.startswith((file, "override ")), text
        assert "\n" not in text and text.count("more error") <= 1
        assert len(text) < 1200, text
        return text
    finally:
        fsspec.filesystem("memory").rm(file.removeprefix("memory:/"))


@given(mutated())
def test_a_mutated_experiment_loads_or_is_explained(tree):
    loaded = load(yaml.safe_dump(tree, sort_keys=False))
    if isinstance(loaded, exfm.Experiment):
        again = load(loaded.as_yaml())
        assert isinstance(again, exfm.Experiment), again
        assert again.as_dict() == loaded.as_dict()


@given(st.sampled_from(PATHS), values, st.sampled_from(["", ".x", ".0", "[0]", ".", "[", "${name}"]))
def test_any_override_is_applied_or_explained(path, value, suffix):
    written = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
    load(EXPERIMENT, f"{'.'.join(map(str, path))}{suffix}={written}")


@given(st.text(max_size=40) | st.sampled_from(["*a", "&a b", "!x y", "%YAML 9", "{", "? a", "a: b: c", "'", "<<: 3"]))
def test_any_text_is_explained(text):
    assert isinstance(load(text), str)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: ".".join(map(str, path)))
def test_a_misspelt_or_missing_key_is_explained(path):
    tree = copy.deepcopy(VALID)
    parent = node_at(tree, path[:-1])
    value = parent.pop(path[-1])
    missing = load(yaml.safe_dump(tree, sort_keys=False))
    assert isinstance(missing, exfm.Experiment) or str(path[-1]) in missing or "name: NAME" in missing
    if isinstance(parent, dict) and path[:-1] != ("models",) and path[-1] != "name":
        parent[f"{path[-1]}_"] = value
        misspelt = load(yaml.safe_dump(tree, sort_keys=False))
        assert isinstance(misspelt, str) and f"'{path[-1]}_'" in misspelt and f"'{path[-1]}'" in misspelt
