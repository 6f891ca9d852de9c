"""The page of recipes runs from top to bottom: its files, its Python, its commands, in one folder."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs/recipes.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.soak
def test_the_recipes_work(folder: Path, exfm_cli: Callable[..., Any]) -> None:
    for language, title, text in BLOCK.findall(PAGE):
        if language == "yaml":
            Path(title).write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, "recipes.md", "exec"), {"__name__": "recipe"})
        else:
            for line in re.findall(r"^\$ (.*)$", text, re.MULTILINE):
                _run(shlex.split(line), exfm_cli)
    results = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("runs/*/results.json")}
    assert set(results["late"]["models"]["vm"]["tasks"]) == {"click", "bought"}
    assert {gain["model"] for gain in results["many"]["gains"]} == {"first", "second"}
    assert results["staged"]["models"]["first"]["tasks"] == results["many"]["models"]["first"]["tasks"]
    assert results["two"]["models"]["fm"]["examples"] == results["many"]["models"]["fm"]["examples"]
    assert (folder / "runs/weights/sweep/sweep.html").exists()


def _run(command: list[str], exfm_cli: Callable[..., Any]) -> None:
    if command[0] == "exfm":
        outcome = exfm_cli(*command[1:])
        assert outcome.status == 0, f"{shlex.join(command)}: {outcome.err}"
    else:
        assert command[0] == "torchrun"
        ran = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", *command[1:]],
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr[-3000:]
