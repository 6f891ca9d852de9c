"""Embeddings as supervision: a single process and separate jobs learn the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
from exfm.scheduling.identity import open_run
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from tests.training.logs import experiment_dict, load, make_log, timeless, write_log

ROWS = 900
STRATEGY = """
import torch
import exfm

class Align(exfm.DistillationStrategy):
    '''The student's representation, mapped, learns the teacher's embedding.'''

    name = "align"
    requires = frozenset({"embedding"})

    def __init__(self, config, student, teacher):
        super().__init__(config, student, teacher)
        self.map = torch.nn.Linear(student.representation_dim, teacher.embedding_dim)

    def loss(self, student, teacher, labels):
        hit = torch.stack(list(teacher.hit.values())).any(dim=0)
        assert not teacher.embedding[~hit].any()
        error = (self.map(student.representation_BR) - teacher.embedding).square().mean(dim=1)
        return torch.where(hit, error, 0.0).mean()

@exfm.hookimpl
def exfm_register_transfer_strategies():
    return [Align]
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(ROWS))


def align_config(log: str, run_dir: Path, **supervision: Any) -> dict[str, Any]:
    config = experiment_dict(log, str(run_dir))
    config["models"]["fm"]["supervision"] = supervision
    config["models"]["vm"]["transfer"] = [{"name": "align", "teacher": "fm"}]
    return config


def stage(experiment: exfm.Experiment, train: tuple[str, ...], label: tuple[str, ...]) -> int:
    """Runs a job of the experiment, and returns the windows that it has advanced."""
    store = Store(experiment.run_dir)
    open_run(experiment, store)
    return StreamLoop(experiment, store, experiment.config.parallel.build(), lambda _: None, train, label).advance()


@pytest.mark.parametrize(("form", "delay"), [("int8", "0s"), ("float16", "1d")])
def test_one_process_and_separate_jobs_learn_the_same(
    log: str, tmp_path: Path, plugins: Any, form: str, delay: str
) -> None:
    plugins.install("align_plugin", STRATEGY)
    whole = exfm.run(load(tmp_path, align_config(log, tmp_path / "whole", embedding=form, delay=delay)))
    apart = load(tmp_path, align_config(log, tmp_path / "apart", embedding=form, delay=delay))
    assert stage(apart, ("fm",), ()) == 6
    if delay != "0s":
        assert stage(apart, (), ("fm",)) == 6
    assert stage(apart, ("vm", "vm.control"), ()) == 6
    assert timeless(exfm.run(apart)) == timeless(whole)
    untaught = whole["models"]["vm.control"]["tasks"]["click"]["ne"]
    assert whole["models"]["vm"]["tasks"]["click"]["ne"] != untaught

    files = sorted((tmp_path / "whole" / "supervision" / "fm").glob("*.parquet"))
    rows = pa.concat_tables(pq.read_table(file) for file in files)
    number = pa.int8() if form == "int8" else pa.float16()
    assert rows.schema.field("embedding").type.value_type == number
    assert ("embedding_scale" in rows.column_names) == (form == "int8")
    values = np.abs(np.concatenate([np.array(row, np.float32) for row in rows.column("embedding").to_pylist()]))
    assert (values.max() == 127) if form == "int8" else (0 < values.max() < 100)


def test_a_teacher_without_embeddings_is_refused_before_training(
    log: str, tmp_path: Path, plugins: Any, write: Callable[..., str], exfm_cli: Callable[..., Any]
) -> None:
    plugins.install("align_plugin", STRATEGY)
    config = align_config(log, tmp_path / "run")
    message = "models.vm.transfer.0: align: teacher 'fm' stores no embeddings; set models.fm.supervision.embedding"
    with pytest.raises(exfm.ConfigError, match=message):
        exfm.run(load(tmp_path, config))
    outcome = exfm_cli("run", write(config))
    assert (outcome.status, message in outcome.err) == (2, True)
    assert not (tmp_path / "run" / "predictions").exists()


def test_results_and_report_show_the_age_of_supervision(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    config["models"]["fm"]["supervision"] = {"delay": "1d"}
    results = exfm.run(load(tmp_path, config))
    coverage = results["supervision"]["fm"]["vm"]
    windows = coverage["windows"]
    assert [window["window"] for window in windows] == list(range(6))
    assert sum(window["examples"] for window in windows) == coverage["examples"] == ROWS
    assert windows[0]["hit_rate"] == 0
    assert windows[0]["age_s"] is None
    assert windows[-1]["hit_rate"] == 1
    edges, counts = coverage["age_histogram"]["edges_s"], coverage["age_histogram"]["counts"]
    assert len(counts) == len(edges) + 1
    assert sum(counts) == round(coverage["hit_rate"] * ROWS)
    old = [count for edge, count in zip([0, *edges], counts, strict=True) if 50_000 < edge < 260_000]
    assert sum(old) == sum(counts)  # between 1 and 3 days
    assert "Age of supervision: fm" in (tmp_path / "run" / "report.html").read_text()
