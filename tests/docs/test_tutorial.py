"""From nothing to a passing test suite of a third party's plugin: the five commands of the page on plugins."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import version
from pathlib import Path

from exfm.cli.stacks import stack_of

PAGE = Path(__file__).parents[2] / "docs/plugins/index.md"
TITLE = "## From nothing to a passing test suite: five commands"


def test_the_five_commands(environment, tmp_path):
    section = PAGE.read_text(encoding="utf-8").partition(f"{TITLE}\n")[2].partition("\n## ")[0]
    commands = re.findall(r"^\$ (.*)$", section, re.MULTILINE)
    assert len(commands) == 5
    # The page names the newest stack, and the environment has the stack of these tests.
    installed = stack_of(version("torch"))
    assert installed is not None
    commands = [re.sub(r"torchrec==[\d.*]+", f"torchrec=={installed.torchrec}", command) for command in commands]
    *_, last = [environment.check(*shlex.split(command), cwd=tmp_path) for command in commands]
    passed = re.search(r"(\d+) passed", last)
    assert passed and int(passed[1]) > 40 and "failed" not in last and "error" not in last
    shown = environment.check("exfm", "show", "backbone.mine", cwd=tmp_path)
    assert "exfm-plugin-mine 0.1.0" in shown
