"""Tests the JSON Schema of the experiment file: valid, complete, and consistent with loading."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from exfm.config.json_schema import experiment_schema
from exfm.registry.discovery import default_registry, discover
from exfm.registry.hooks import INTERFACES

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed")

ROOT = Path(__file__).parents[2]
# Other distributions bring components that are not installed here: see tests/examples/test_distributions.py.
EXAMPLES = [path for path in sorted((ROOT / "examples").rglob("*.yaml")) if "exfm-plugin-" not in str(path)]
VALID = yaml.safe_load((ROOT / "tests" / "experiment.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return experiment_schema(default_registry())


@pytest.fixture(scope="module")
def errors(schema):
    validator = jsonschema.Draft202012Validator(schema)
    return lambda tree: [error.message for error in validator.iter_errors(tree)]


def test_the_schema_is_a_schema(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(schema)) == schema and "x-exfm-component" not in json.dumps(schema)


def test_every_reference_leads_somewhere(schema):
    references: set[str] = set()

    def visit(node: Any) -> None:
        if isinstance(node, dict):
            references.update(value for key, value in node.items() if key == "$ref" and isinstance(value, str))
            node = list(node.values())
        for item in node if isinstance(node, list) else ():
            visit(item)

    visit(schema)
    assert {reference.removeprefix("#/$defs/") for reference in references} <= schema["$defs"].keys()


def test_every_components_fields_are_there_with_their_sentences(schema):
    registry = default_registry()
    for kind in INTERFACES:
        for name in registry.names(kind):
            described = schema["$defs"][f"{kind}.{name}"]
            fields = registry.resolve(kind, name).Config.model_fields
            assert list(described["properties"]) == ["name", *fields] and described["additionalProperties"] is False
            for key, field in fields.items():
                assert described["properties"][key]["description"] == field.description
            assert {"$ref": f"#/$defs/{kind}.{name}"} in schema["$defs"][kind]["oneOf"]


def test_an_editor_can_offer_every_name_before_any_field_is_written(schema):
    for kind in INTERFACES:
        names = [choice["const"] for choice in schema["$defs"][kind]["properties"]["name"]["anyOf"]]
        assert names == default_registry().names(kind)


def test_every_key_of_the_file_has_its_sentence(schema):
    def visit(node: Any, where: str) -> None:
        if isinstance(node, dict):
            for key, value in node.get("properties", {}).items() if node.get("type") == "object" else ():
                target = schema["$defs"].get(value.get("$ref", "").removeprefix("#/$defs/"), {})
                assert value.get("description") or target.get("description"), f"{where}.{key}"
            for key, value in node.items():
                visit(value, f"{where}.{key}")

    visit(schema, "experiment")


@pytest.mark.parametrize("path", [*EXAMPLES, ROOT / "tests" / "experiment.yaml"], ids=lambda path: path.name)
def test_the_examples_fit(path, errors):
    assert errors(yaml.safe_load(path.read_text(encoding="utf-8"))) == []


def test_the_resolved_config_fits(errors, experiment, write):
    import exfm

    assert errors(exfm.load_experiment(write(experiment)).as_dict()) == []


BAD: list[tuple[list[Any], Any]] = [
    (["seeds"], 1),
    (["stream", "widow"], "1d"),
    (["stream", "window"], 7),
    (["stream", "source", "dayz"], 1),
    (["stream", "source", "name"], "synthetic_add"),
    (["stream", "source"], "synthetic_ads"),
    (["models", "fm", "backbon"], {"name": "dlrm"}),
    (["models", "fm", "backbone", "layer"], 1),
    (["models", "fm", "backbone", "layers"], "two"),
    (["models", "fm", "backbone"], {"name": "din"}),
    (["models", "vm", "transfer", 0, "wieght"], 1),
    (["models", "vm", "transfer", 0], {"name": "direct"}),
    (["models", "vm", "where", "surface"], {"buckets": 0, "of": 2}),
    (["models", "vm", "head_hidden"], [0]),
    (["evaluation", "skip"], 1.0),
    (["parallel"], {"name": "single", "gpus": 1}),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[".".join(map(str, path)) for path, _ in BAD])
def test_mistakes_do_not_fit(path, value, errors):
    tree = copy.deepcopy(VALID)
    node = tree
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    assert errors(tree)


def test_parallel_may_be_left_out(errors):
    assert errors({key: value for key, value in VALID.items() if key != "parallel"}) == []
    assert errors({key: value for key, value in VALID.items() if key != "models"})


def test_a_component_that_cannot_be_described_leaves_the_others(plugins):
    plugins.install(
        "thing",
        """
        from collections.abc import Callable
        import exfm
        from pydantic import Field

        class Thing(exfm.Backbone):
            name = "thing"
            class Config(exfm.ComponentConfig):
                call: Callable[[], int] | None = Field(None, description="Nothing a file can hold.")

        @exfm.hookimpl
        def exfm_register_backbones():
            return [Thing, exfm.LazyComponent("other", "thing:Missing")]
        """,
    )
    registry = discover()
    assert {"thing", "other"} <= set(registry.names("backbone"))
    schema = experiment_schema(registry)
    jsonschema.Draft202012Validator.check_schema(schema)
    described = {choice["$ref"].rpartition(".")[2] for choice in schema["$defs"]["backbone"]["oneOf"]}
    assert described == set(registry.names("backbone")) - {"thing", "other"}


def test_a_kind_without_components_is_still_a_schema():
    schema = experiment_schema(discover(["exfm"]))
    jsonschema.Draft202012Validator.check_schema(schema)
