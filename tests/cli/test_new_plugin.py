"""`exfm new-plugin`: for each kind a distribution that installs, is clean and typed, and passes its tests at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from exfm.cli.new_plugin import checked_project, write_project
from exfm.errors import ConfigError
from exfm.registry.discovery import default_registry
from exfm.registry.hooks import HOOK_BY_KIND

ROOT = Path(__file__).parents[2]
NAMES = {
    "backbone": "shallow",
    "sequence_encoder": "my-encoder",
    "transfer_strategy": "mimic_2",
    "teacher_input": "newest",
    "task_head": "focal",
    "metric": "brier",
    "data_source": "clicks",
    "parallel_plan": "few-threads",
    "launcher": "niced",
    "tracker": "lines",
}
LONGEST = "a-" + 30 * "b"


def make(folder: Path, names: dict[str, str], exfm_cli) -> list[Path]:
    """Writes a distribution of each kind into a new folder."""
    folders = []
    for kind, name in names.items():
        done = exfm_cli("new-plugin", name, "--kind", kind, "--out", str(folder))
        assert done.status == 0, done.err
        folders.append(folder / f"exfm-plugin-{name.replace('_', '-')}")
        assert str(folders[-1]) in done.out and folders[-1].is_dir()
    return folders


@pytest.fixture(scope="module")
def outcomes(environment, tmp_path_factory) -> dict[str, dict[str, str]]:
    """Runs all generated suites at once: {kind: {test: passed, skipped or failed}}."""
    folder = tmp_path_factory.mktemp("generated")
    for kind, name in NAMES.items():
        write_project(checked_project(name, kind, default_registry()), folder / kind)
    folders = [str(folder / kind) for kind in NAMES]
    environment.check("pip", "install", "--quiet", *(word for path in folders for word in ("--editable", path)))
    environment.run("pytest", *folders, "-q", "--junitxml", "report.xml", "-p", "no:cacheprovider", cwd=folder)
    reports: dict[str, dict[str, str]] = {kind: {} for kind in NAMES}
    for case in ElementTree.parse(folder / "report.xml").getroot().iter("testcase"):
        kind = next(
            kind for kind, name in NAMES.items() if f"test_{name.replace('-', '_')}" in case.attrib["classname"]
        )
        remarks = [f"{remark.tag}: {remark.get('message')}" for remark in case]
        reports[kind][case.attrib["name"]] = "".join(remarks) or "passed"
    return reports


@pytest.mark.parametrize("kind", HOOK_BY_KIND)
def test_its_tests_pass_at_once(kind, outcomes):
    of_kind = outcomes[kind]
    assert {test: how for test, how in of_kind.items() if how != "passed" and not how.startswith("skipped")} == {}
    assert of_kind["test_plugin_offers_it"] == of_kind["test_the_example_runs"] == "passed"
    assert sum(how == "passed" for how in of_kind.values()) >= 14


def test_installed_they_are_plugins_like_any_other(outcomes, environment, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no line of the table is folded, whatever runs the tests
    shown = environment.check("exfm", "plugins")
    for kind, name in NAMES.items():
        line = next(line for line in shown.splitlines() if f"exfm-plugin-{name.replace('_', '-')} " in line)
        assert line.split()[3:] == ["loaded", f"{kind}.{name.replace('-', '_')}"]
    again = environment.run("exfm", "new-plugin", "shallow")
    assert again.returncode == 2 and "taken by exfm-plugin-shallow 0.1.0 (plugin 'shallow')" in again.stderr


@pytest.mark.parametrize("name", [None, "a", LONGEST])
def test_it_is_clean_whatever_it_is_called(name, tmp_path):
    for kind, usual_name in NAMES.items():
        write_project(checked_project(name or usual_name, kind, default_registry()), tmp_path / kind)
    for check in (["check"], ["format", "--check"]):
        done = subprocess.run([sys.executable, "-m", "ruff", *check, "."], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_files_that_others_read(tmp_path, exfm_cli):
    for folder in make(tmp_path, NAMES, exfm_cli):
        (example,) = folder.glob("examples/*.yaml")
        assert example.read_text().startswith("# yaml-language-server: $schema=exfm.schema.json\n")
        ci = yaml.safe_load((folder / ".github/workflows/test.yaml").read_text())
        assert "pytest" in [step.get("run") for step in ci["jobs"]["test"]["steps"]]
        readme = (folder / "README.md").read_text()
        assert f"pip install {folder.name}\n" in readme
        blocks = [block.partition("```")[0] for block in readme.split("```yaml\n")[1:]]
        assert all(isinstance(yaml.safe_load(block), dict) for block in blocks) and blocks


REFUSED = {
    "a.b": ["NAME is a lower-case letter", "'a.b'", "Did you mean 'a_b'?"],
    "My Thing": ["Did you mean 'my_thing'?"],
    "Rank-Mixer": ["Did you mean 'rank_mixer'?"],
    "3d": ["given: '3d'", "Did you mean 'd'?"],
    "a__b": ["single _"],
    "a-": ["NAME is a lower-case letter"],
    "": ["given: ''"],
    "é": ["given: 'é'"],
    "../x": ["given: '../x'", "Did you mean 'x'?"],
    "a\n": ["NAME is a lower-case letter"],
    33 * "a": ["at most 32"],
    "exfm-plugin-rankmixer": ["without exfm-plugin-", "'rankmixer'"],
    "yes": ["no text in YAML"],
    "wukong": ["backbone 'wukong' is taken by exfm ", "(plugin 'backbones')", "choose another"],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_cannot_be(name, tmp_path, exfm_cli):
    done = exfm_cli("new-plugin", "--out", str(tmp_path), "--", name)
    assert done.status == 2 and list(tmp_path.iterdir()) == []
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and not done.out
    assert all(word in done.err for word in REFUSED[name]), done.err


def test_a_name_of_another_kind_is_free(tmp_path, exfm_cli):
    assert exfm_cli("new-plugin", "wukong", "--kind", "data_source", "--out", str(tmp_path)).status == 0


def test_every_built_in_name_could_be_a_plugins():
    registry = default_registry()
    for kind in HOOK_BY_KIND:
        for name in registry.names(kind):
            with pytest.raises(ConfigError, match=f"{kind} {name!r} is taken"):
                checked_project(name, kind, registry)


def test_a_kind_that_is_not(tmp_path, exfm_cli):
    done = exfm_cli("new-plugin", "x", "--kind", "backbon", "--out", str(tmp_path))
    assert done.status == 2 and "--kind: no kind of component is called 'backbon'. Did you mean 'backbone'?" in done.err


def test_a_folder_that_exists_is_left_alone(tmp_path, exfm_cli):
    mine = tmp_path / "exfm-plugin-x" / "mine"
    mine.parent.mkdir()
    mine.write_text("mine")
    done = exfm_cli("new-plugin", "x", "--out", str(tmp_path))
    assert done.status == 2 and f"{mine.parent} exists already" in done.err
    assert [*mine.parent.iterdir()] == [mine]


def test_a_folder_that_cannot_be_made(tmp_path, exfm_cli):
    (tmp_path / "file").write_text("")
    done = exfm_cli("new-plugin", "x", "--out", str(tmp_path / "file"))
    assert done.status == 2 and "exfm-plugin-x cannot be written" in done.err
