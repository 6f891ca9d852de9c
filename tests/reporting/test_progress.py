"""Progress where there is no terminal: lines on stderr of a job, a bar in a notebook."""

from __future__ import annotations

import re
from typing import Any

import pytest

import exfm
from exfm.bookkeeping.progress import Progress
from exfm.reporting.progress import StreamProgress

DAY_US = 86_400_000_000
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


def chunk(index: int, rows: int = 100) -> Progress:
    return Progress(
        exfm.sources.Window(index, index * DAY_US, (index + 1) * DAY_US), 3, rows, {"fm": 0.875, "vm": None}
    )


def test_a_job_says_early_where_it_is_and_ends_with_the_last_rows(capsys: pytest.CaptureFixture[str]) -> None:
    with StreamProgress("fm") as progress:
        for index in range(3):
            progress.update(chunk(index))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3, "of three quick chunks the first and the last are shown, then the sum of all"
    pattern = TIME + r" fm: window %d of 3 \(%sT00:00:00Z\), %d rows, [\d,]+ rows/s, NE fm 0\.8750 vm -, "
    pattern += r"[\d.]+ [MG]B, 0:00:0\d; [a-z]+ \d+%%.*"
    assert re.fullmatch(pattern % (1, "1970-01-01", 100), lines[0])
    assert re.fullmatch(pattern % (3, "1970-01-03", 300), lines[1])
    assert re.fullmatch(TIME + r" fm: done after 0:00:0\d: .*; 300 rows in 0 windows; at most [\d.]+ [MG]B", lines[2])


def test_other_processes_of_a_job_are_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    with StreamProgress("fm") as progress:
        progress.update(chunk(0))
    assert capsys.readouterr().err == ""


def test_a_notebook_shows_a_bar_without_widgets() -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    code = (
        "import sys\n"
        "sys.modules['ipywidgets'] = None\n"
        "from types import SimpleNamespace\n"
        "from exfm.sources import Window\n"
        "from exfm.reporting.progress import StreamProgress\n"
        "with StreamProgress('<fm>') as progress:\n"
        "    progress.update(SimpleNamespace(window=Window(1, 0, 1), windows=2, rows=1234, ne={'fm': 0.5}))\n"
    )
    notebook: Any = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    assert "max='2'" in output.data["text/html"] and "value='2'" in output.data["text/html"]
    assert "&lt;fm&gt;: window 2 of 2" in output.data["text/html"] and "1,234 rows" in output.data["text/html"]
