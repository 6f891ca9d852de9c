"""The command line beside a plugin that breaks on import, as a user runs it: each command in a separate process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def broken(plugins):
    plugins.install(
        "thing", "print('on stdout')\nraise RuntimeError('half installed')", distribution="exfm-plugin-thing"
    )
    return plugins


def test_commands_that_do_not_need_it_work(broken, experiment, write):
    file = write(experiment)
    for arguments in (["plugins"], ["plugins", "--json"], ["validate", file]):
        done = broken.exfm(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        assert "Traceback" not in done.stderr + done.stdout
        if arguments == ["plugins"]:
            assert "thing is broken: RuntimeError: half installed" in done.stdout
        if arguments == ["plugins", "--json"]:
            ours = next(plugin for plugin in json.loads(done.stdout) if plugin["name"] == "thing")
            assert ours["status"] == "broken" and "half installed" in ours["reason"]
            assert (ours["distribution"], ours["version"]) == ("exfm-plugin-thing", "1.0")


def test_an_experiment_that_needs_it_fails_with_its_reason(broken, experiment, write):
    experiment["models"]["vm"]["backbone"] = {"name": "thing", "layers": 3}
    done = broken.exfm("run", write(experiment))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for words in ("models.vm.backbone.name", "'thing'", "exfm-plugin-thing 1.0", "RuntimeError: half installed"):
        assert words in errors[0]


def test_damage_that_stops_python_itself_is_named(plugins, experiment, write):
    plugins.add_distribution("exfm-plugin-garbled", "[exfm]\nno equals sign here\n")
    command = [sys.executable, "-m", "exfm", "validate", write(experiment)]  # anew: pydantic reads it when imported
    path = os.pathsep.join(filter(None, [str(plugins.path), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "exfm-plugin-garbled is damaged: its entry_points.txt cannot be read; install it again" in done.stderr
