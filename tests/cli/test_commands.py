"""The output of the commands, and their exit status."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

import exfm
from exfm.cli.main import _COMMANDS
from exfm.registry.discovery import default_registry
from exfm.registry.hooks import INTERFACES

COMPONENTS = [component for plugin in default_registry().plugins.values() for component in plugin.components]


def test_help_lists_every_command(exfm_cli):
    shown = exfm_cli("--help")
    assert shown.status == 0
    assert all(re.search(rf"\b{command}\b", shown.out) for command in _COMMANDS)


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_has_help(command, exfm_cli):
    shown = exfm_cli(command, "--help")
    assert shown.status == 0 and f"exfm {command}" in shown.out


def test_version(exfm_cli):
    assert exfm_cli("--version").out == f"exfm {exfm.__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["plugins"], ["components"], []])
def test_commands_that_list_do_not_import_torch(arguments):
    code = (
        "import sys\n"
        f"sys.argv = ['exfm', *{arguments!r}]\n"
        "from exfm.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'torch', 'torchrec', 'fbgemm_gpu', 'pyarrow'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("[]") and "Traceback" not in done.stderr
    assert done.stdout


def test_plugins_as_a_table_and_as_json(exfm_cli):
    table, plugins = exfm_cli("plugins"), json.loads(exfm_cli("plugins", "--json").out)
    assert {"backbones", "encoders", "inputs", "parallel", "sources", "transfer"} <= {
        plugin["name"] for plugin in plugins
    }
    for plugin in plugins:
        assert plugin.keys() == {"name", "module", "distribution", "version", "status", "reason", "components"}
        assert plugin["name"] in table.out and all(component in table.out for component in plugin["components"])


def test_the_table_of_plugins_breaks_no_name_at_80_columns(exfm_cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    table = exfm_cli("plugins").out
    assert all(component in table.split() for component in COMPONENTS) and "\u2026" not in table
    assert max(map(len, table.splitlines())) <= 80


def test_components_of_all_kinds_and_of_one(exfm_cli):
    everything = json.loads(exfm_cli("components", "--json").out)
    assert [f"{listed['kind']}.{listed['name']}" for listed in everything] == sorted(
        COMPONENTS, key=lambda component: (list(INTERFACES).index(component.partition(".")[0]), component)
    )
    for kind in INTERFACES:
        lines = exfm_cli("components", kind).out.splitlines()
        names = [listed["name"] for listed in everything if listed["kind"] == kind]
        assert lines == [f"{kind}.{name}  (exfm)" for name in names] != []


@pytest.mark.parametrize("component", COMPONENTS)
def test_show_tells_all_there_is_to_set(component, exfm_cli):
    text, described = exfm_cli("show", component), json.loads(exfm_cli("show", component, "--json").out)
    kind, _, name = component.partition(".")
    config = default_registry().resolve(kind, name).Config
    assert (described["kind"], described["name"]) == (kind, name)
    assert described["provider"]["distribution"] == "exfm" and described["doc"] in text.out
    assert [field["name"] for field in described["fields"]] == list(config.model_fields)
    for field in described["fields"]:
        assert field["description"].endswith(".") and field["description"] in text.out
        assert f"\n{field['name']}: {field['type']}, " in text.out
        assert "typing" not in field["type"] and "Annotated" not in field["type"]
        assert config.model_fields[field["name"]].is_required() is field["required"]
    defaults = {field["name"]: field["default"] for field in described["fields"] if not field["required"]}
    features = [{"name": "a", "kind": "dense"}]
    required: dict[str, Any] = {"teacher": "fm", "path": "x", "features": features, "labels": [{"name": "b"}]}
    required["url"] = required["stream"] = required["bootstrap_servers"] = required["topic"] = required["table"] = "x"
    required["logdir"] = "x"
    required["sources"] = {product: {"name": "synthetic_ads"} for product in ("app", "web")}
    required["logs"] = {"clicks": {"path": "x", "time": "at"}}
    required |= {"parts": {"table/a": "added"}, "item": ["a"], "values": [0, 1]}
    values = {key: required[key] for key, field in config.model_fields.items() if field.is_required()}
    assert config.model_validate(values | defaults) == config.model_validate(values), "defaults are shown as written"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "backbone.wukon"], "Did you mean 'wukong'?"),
        (["show", "bakbone.wukong"], "Did you mean 'backbone'?"),
        (["show", "wukong"], "write KIND.NAME"),
        (["show", "backbone."], "write KIND.NAME"),
        (["components", "backbones"], "Did you mean 'backbone'?"),
        (["--block-plugin", "backbones", "show", "backbone.wukong"], "is blocked"),
        (["schema", "-o", "/no/such/folder/schema.json"], "/no/such/folder/schema.json: the schema cannot be written"),
        (["validate", "nowhere.yaml"], "nowhere.yaml: the experiment file cannot be read"),
        (["validate", "seed=3"], "name at least one experiment file"),
        (["run", "nowhere.yaml"], "nowhere.yaml: the experiment file cannot be read"),
        (["report", "nowhere"], "nowhere: no results.json"),
    ],
)
def test_wrong_input_ends_with_status_2_and_one_line(arguments, words, exfm_cli):
    outcome = exfm_cli(*arguments)
    assert outcome.status == 2 and outcome.out == ""
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1
    assert words in outcome.err


@pytest.mark.parametrize("arguments", [["trane"], ["run"], ["plugins", "--jason"], ["--blok", "x", "plugins"]])
def test_wrong_usage_ends_with_status_2(arguments, exfm_cli):
    outcome = exfm_cli(*arguments)
    assert outcome.status == 2 and outcome.out == "" and "Traceback" not in outcome.err


ONCE = [
    ("predict", "--model", "a", "b"),
    ("predict", "--out", "a", "a"),
    ("export", "--out", "a", "b"),
    ("plan", "--world-size", "1", "2"),
    ("train", "--idle-timeout", "1", "2"),
    ("log", "--mlflow", "a", "b"),
    ("schema", "-o", "a", "b"),
    ("new-plugin", "--kind", "backbone", "data_source"),
]


@pytest.mark.parametrize(("command", "option", "first", "second"), ONCE)
def test_an_option_of_one_value_is_not_given_twice(command, option, first, second, exfm_cli):
    outcome = exfm_cli(command, "x", option, first, option, second)
    words = " ".join(outcome.err.replace("\u2502", " ").split())
    assert outcome.status == 2 and "it takes one value, and is given twice" in words and option in words


def test_an_option_that_may_be_repeated_is_not_refused(exfm_cli):
    outcome = exfm_cli("plan", "nowhere.yaml", "--world-size", "1", "--length", "a=1", "--length", "b=2")
    assert "nowhere.yaml: the experiment file cannot be read" in outcome.err


def test_validate_goes_on_after_a_wrong_file(experiment, write, exfm_cli):
    good = write(experiment, "good.yaml")
    outcome = exfm_cli("validate", write(experiment | {"seed": "x"}, "bad.yaml"), good, "models.vm.embedding_dim=8")
    assert outcome.status == 2
    assert outcome.out == f"{good}: ok: fm, vm, vm.control\n"
    assert "bad.yaml: seed: must be a whole number" in outcome.err


def test_debug_shows_the_traceback(exfm_cli):
    with pytest.raises(exfm.ConfigError):
        exfm_cli("--debug", "run", "nowhere.yaml")


@pytest.mark.parametrize(("error", "status"), [("RunError", 1), ("ConfigError", 2), ("KeyError", 1)])
def test_the_error_decides_the_status(error, status, monkeypatch, exfm_cli):
    def fail(*_: object) -> None:
        raise {"RunError": exfm.RunError, "ConfigError": exfm.ConfigError, "KeyError": KeyError}[error]("it broke")

    monkeypatch.setattr("exfm.registry.discovery.discover", fail)
    outcome = exfm_cli("plugins")
    assert outcome.status == status and outcome.out == ""
    assert "it broke" in outcome.err and "Traceback" not in outcome.err


def test_validate_builds_the_models(experiment, write, exfm_cli):
    experiment["models"]["fm"]["sequence_encoder"] = {"name": "din", "target": ["nobody"]}
    outcome = exfm_cli("validate", write(experiment))
    assert outcome.status == 2
    assert "error: models.fm: din: target 'nobody' is not among" in outcome.err
