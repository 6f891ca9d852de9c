"""Runs `exfm validate` and `exfm run` on more than fifty broken experiment files, and checks their messages.

The files are those of ``test_config_errors`` (written by hand) and ``test_config_mutations`` (by hypothesis).
"""

from __future__ import annotations

import copy
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from hypothesis import given

from exfm.cli.main import main
from tests.config.test_config_errors import FILES, MISTAKES, put
from tests.config.test_config_mutations import VALID, mutated


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a command."""
    out, err = StringIO(), StringIO()
    with patch.object(sys, "argv", ["exfm", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            return (stop.code if isinstance(stop.code, int) else 1 if stop.code else 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def check_refused(command: str, file: str) -> str:
    """Checks that a command refuses the file with a single line, and returns the line."""
    status, out, err = call(command, file)
    assert (status, out) == (2, ""), (command, out, err)
    assert err.startswith(f"error: {file}: ") and err.count("\n") == 1 and "Traceback" not in err, err
    return err


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, list[str]]]:
    """Writes the broken files; returns the key path and the words that the message must have, by file."""
    folder, files = tmp_path_factory.mktemp("broken"), {}
    for number, (path, value, key_path, words) in enumerate(MISTAKES):
        tree = copy.deepcopy(VALID)
        put(tree, path, value)
        file = folder / f"{number}.yaml"
        file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        files[str(file)] = (f"{key_path or path}: ", words)
    return files


def test_there_are_more_than_fifty_and_no_two_are_alike(broken: dict[str, tuple[str, list[str]]]) -> None:
    assert len(broken) >= 50
    assert len({Path(file).read_text(encoding="utf-8") for file in broken}) == len(broken)
    suggested = [words for _, words in broken.values() if any("Did you mean" in word for word in words)]
    assert len(suggested) > 15


def test_run_tells_each_in_one_line_with_file_and_key_path(broken: dict[str, tuple[str, list[str]]]) -> None:
    assert len(broken) / 2 + len(FILES) > 50
    for file, (key_path, words) in list(broken.items())[::2]:  # as the message is the same, half of them will do
        text = check_refused("run", file)
        assert key_path in text and all(word in text for word in words), text


def test_validate_tells_all_of_them_at_once(broken: dict[str, tuple[str, list[str]]]) -> None:
    status, out, err = call("validate", *broken)
    assert (status, out) == (2, "") and "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == len(broken)
    for line, (file, (key_path, words)) in zip(lines, broken.items(), strict=True):
        assert line.startswith(f"error: {file}: ") and key_path in line and all(word in line for word in words), line


@pytest.mark.parametrize("text", FILES)
def test_files_that_are_no_experiments(text: str, tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    assert check_refused("validate", str(file)) == check_refused("run", str(file))


@given(tree=mutated())
def test_mutations_of_a_valid_file(tmp_path: Path, tree: dict[Any, Any]) -> None:
    file = tmp_path / "mutated.yaml"
    file.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    if call("validate", str(file))[0] != 0:
        assert check_refused("validate", str(file)) == check_refused("run", str(file))
