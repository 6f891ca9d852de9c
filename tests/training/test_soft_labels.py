"""Worth of soft labels: calibration and NE of students' labels, in results.json and in the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss

import exfm
from exfm.reporting.html import render_report
from tests.training.logs import differences, experiment_dict, load, make_log, predictions, supervision, write_log

ADAPTER = {"name": "student_adapter", "teacher": "fm"}
HEAD = {"name": "auxiliary_head", "teacher": "fm"}


def config(folder: Path, name: str, *transfer: dict[str, Any]) -> dict[str, Any]:
    """Two tasks, the second of them late, and a teacher that is a day old."""
    path = write_log(folder / f"log-{name}", make_log())
    settings = experiment_dict(path, str(folder / name), labels=("click", "buy"))
    settings["models"]["fm"]["supervision"] = {"delay": "1d"}
    settings["models"]["vm"]["transfer"] = [dict(item) for item in transfer]
    return settings


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("whole")
    return exfm.run(load(folder, config(folder, "run", HEAD, ADAPTER))), folder / "run"


def entries(results: dict[str, Any]) -> dict[tuple[int, str, str], dict[str, Any]]:
    actual = results["supervision"]["fm"]["vm"]["soft_labels"]
    return {(entry["transfer"], entry["label"], entry["task"]): entry for entry in actual}


def test_each_kind_of_label_is_scored_once(whole: tuple[dict[str, Any], Path]) -> None:
    assert set(entries(whole[0])) == {
        (0, "teacher", "click"), (0, "teacher", "buy"), (1, "corrected", "click"), (1, "corrected", "buy")
    }  # fmt: skip


def column(rows: pa.Table, name: str) -> dict[int, float | None]:
    """A column by example id."""
    return dict(zip(rows.column("example_id").to_pylist(), rows.column(name).to_pylist(), strict=True))


@pytest.mark.parametrize("task", ["click", "buy"])
def test_the_teachers_figures_are_those_of_its_rows(whole: tuple[dict[str, Any], Path], task: str) -> None:
    results, run_dir = whole
    soft: list[Any] = []
    true: list[Any] = []
    counts = {}
    for window, rows in predictions(str(run_dir), "vm").items():
        taught = column(supervision(str(run_dir), "fm")[window], f"prediction_{task}")
        labels = column(rows, f"label_{task}")
        pairs = [(taught[example], label) for example, label in labels.items() if taught.get(example) is not None]
        counts[window] = len(pairs)
        if window > 1:  # the first quarter of the stream is not scored: two of six windows
            soft += [probability for probability, _ in pairs]
            true += [label for _, label in pairs]
    entry = entries(results)[0, "teacher", task]
    assert [item["examples"] for item in entry["windows"]] == [*counts.values()]
    assert entry["examples"] == len(true) > 500
    assert entry["calibration"] == pytest.approx(sum(soft) / sum(true), rel=1e-6)
    rate = np.mean(true)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert entry["ne"] == pytest.approx(log_loss(true, soft) / entropy, rel=1e-6)


def test_the_corrected_label_of_a_task_without_fresh_labels_is_the_teachers(whole: tuple[dict[str, Any], Path]) -> None:
    actual = entries(whole[0])
    late, teachers = actual[1, "corrected", "buy"], actual[0, "teacher", "buy"]
    assert late["calibration"] == pytest.approx(teachers["calibration"], rel=1e-5)
    assert late["ne"] == pytest.approx(teachers["ne"], rel=1e-5)
    prompt = actual[1, "corrected", "click"]
    assert prompt["calibration"] != pytest.approx(actual[0, "teacher", "click"]["calibration"], rel=1e-3)
    assert prompt["examples"] == actual[0, "teacher", "click"]["examples"]


def test_an_interrupted_run_counts_each_example_once(whole: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    experiment = load(tmp_path, config(tmp_path, "run", HEAD, ADAPTER))
    chunks = 0

    def stop(_: object) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == 8:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        exfm.run(experiment, stop)
    assert not differences(exfm.run(experiment), whole[0])


def test_the_report_shows_them(whole: tuple[dict[str, Any], Path]) -> None:
    page = render_report(whole[0], "")
    table = page[page.index("<caption>Soft labels against the labels</caption>") :]
    table = table[: table.index("</table>")]
    assert table.count('<td class="words">fm</td>') == 4 and table.count("corrected, transfer 1") == 2
    entry = entries(whole[0])[1, "corrected", "click"]
    assert f"<td>{entry['calibration']:.3f}</td><td>{entry['ne']:.5f}</td>" in table
