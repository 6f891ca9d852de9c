"""The quality benchmark: the same rows and batches on both sides, the same scored part, and a log that resumes."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import exfm
from exfm.data.batch import Batch
from exfm.data.stream import ChunkReader
from exfm.data.windows import stream_windows
from exfm.learning.trainer import Trainer

ROWS, CHUNK, BATCH = 500, 64, 20
EXPERIMENT = f"""
name: tiny
stream:
  window: 1h
  chunk_rows: {CHUNK}
  source:
    name: parquet
    path: PATH
    time_unit: s
    labels: [{{name: click}}]
    features:
      - {{name: user, kind: categorical, rows: 16}}
      - {{name: price, kind: dense, transform: log1p}}
      - {{name: item, kind: categorical, rows: 9, ids: row}}
      - {{name: tags, kind: multi_valued, rows: 8}}
      - {{name: score, kind: dense}}
      - name: history
        kind: sequence
        max_length: 3
        fields:
          - {{name: mood, column: moods, rows: 4, ids: row}}
          - {{name: age, column: ages, kind: dense}}
          - {{name: item, column: items, rows: 9, table: item, ids: row}}
evaluation: {{skip: 0.25}}
models:
  fm: {{backbone: {{name: dlrm, hidden: [8]}}, embedding_dim: 4, batch_size: {BATCH}}}
parallel: {{name: single, device: cpu}}
"""


@pytest.fixture
def quality(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The benchmark's modules."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks" / "quality")
    names = ("campaign", "export", "run", "streams", "tables")
    return SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def experiment_path(tmp_path: Path) -> Path:
    """An experiment over a small log of uneven windows, with missing ids, empty lists and long histories."""
    random = np.random.default_rng(0)

    def lists(top: int) -> list[list[int]]:
        return [random.integers(0, top, length).tolist() for length in lengths]

    lengths = random.integers(0, 6, ROWS)
    columns = {
        "example_id": np.arange(ROWS) * 7,
        "event_time": 1_000 + np.sort(random.integers(0, 5 * 3600, ROWS) ** 2 // 18_000),
        "user": [None if i % 11 == 0 else f"u{i % 30}" for i in range(ROWS)],
        "price": random.exponential(50, ROWS).astype(np.float32),
        "item": [None if i % 13 == 0 else i % 9 for i in range(ROWS)],
        "tags": random.permutation(np.array(lists(20), dtype=object)).tolist(),
        "score": random.normal(-3, 5, ROWS).astype(np.float32),
        "moods": lists(4),
        "items": lists(9),
        "ages": [[float(age) for age in ages] for ages in lists(99)],
        "click": random.integers(0, 2, ROWS),
    }
    pq.write_table(pa.table(columns), tmp_path / "log.parquet", row_group_size=90)
    path = tmp_path / "tiny.yaml"
    path.write_text(EXPERIMENT.replace("PATH", str(tmp_path / "log.parquet")))
    return path


def batches(experiment: exfm.Experiment) -> list[Batch]:
    reader = ChunkReader(experiment.source, experiment.schema, experiment.config.stream, {}, exfm.sources.Shard())
    windows = stream_windows(experiment.source, experiment.config.stream.window)
    return [chunk.batch for window in windows for chunk in reader.read(window)]


def trained_on(experiment: str, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The example ids of every training step of a run."""
    steps: list[list[int]] = []
    step = Trainer.step

    def recording(self: Trainer, batch: Batch, *arguments: Any) -> Any:
        steps.append(batch.example_id.tolist())
        return step(self, batch, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", recording)
        exfm.run(exfm.load_experiment(experiment, [f"run_dir={run_dir}"]))
    return steps


def test_export_has_the_batches_that_exfm_trains_on(
    quality: Any, experiment_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = quality.export.export(exfm.load_experiment(str(experiment_path)), tmp_path / "rows")
    table = pq.read_table(made.rows)
    edges = np.flatnonzero(np.diff(table["batch"].to_numpy())) + 1
    numbered = [part.tolist() for part in np.split(table["example_id"].to_numpy(), edges)]
    assert numbered == trained_on(str(experiment_path), tmp_path / "a", monkeypatch)
    assert numbered == trained_on(str(made.experiment), tmp_path / "b", monkeypatch)


def test_export_holds_what_exfm_decodes(quality: Any, experiment_path: Path, tmp_path: Path) -> None:
    original = exfm.load_experiment(str(experiment_path))
    made = quality.export.export(original, tmp_path / "rows")
    scored_from_us = made.facts["scored_from_us"]
    given, read = batches(original), batches(exfm.load_experiment(str(made.experiment)))
    early = torch.cat([batch.dense_BF[batch.event_time_us < scored_from_us] for batch in given])
    for was, now in zip(given, read, strict=True):
        for name in ("user", "item", "tags"):
            assert now.sparse[name].values().tolist() == was.sparse[name].values().tolist()
            assert now.sparse[name].lengths().tolist() == was.sparse[name].lengths().tolist()
        history, kept = was.sequences["history"], now.sequences["history"]
        assert kept.ids_EC.flatten().tolist() == history.ids_EC[:, 1].tolist()
        assert kept.offsets.tolist() == history.offsets.tolist()
        assert now.labels["click"].tolist() == was.labels["click"].tolist()
        expected = ((was.dense_BF - early.mean(0)) / early.std(0, correction=0)).clamp(-10, 10)
        torch.testing.assert_close(now.dense_BF, expected)
    assert 0 < early.shape[0] < ROWS


@pytest.mark.parametrize("skip", [0.0, 0.6])
def test_scored_part_is_that_of_a_run(quality: Any, experiment_path: Path, tmp_path: Path, skip: float) -> None:
    changes = [f"run_dir={tmp_path / 'run'}", f"evaluation.skip={skip}"]
    experiment = exfm.load_experiment(str(experiment_path), changes)
    windows = quality.streams.rows_by_window(experiment)
    first_us = quality.streams.first_scored(windows, skip)
    scored = exfm.run(experiment)["models"]["fm"]["tasks"]["click"]["examples"]
    assert sum(count for window, count in windows if window.start_us >= first_us) == scored


def test_tuning_sees_nothing_that_is_scored(quality: Any, experiment_path: Path, tmp_path: Path) -> None:
    campaign = quality.campaign.Campaign(experiment_path, (), tmp_path)
    whole = campaign.experiment({}, 0)
    windows = quality.streams.rows_by_window(whole)
    tuned = quality.run.shortened(campaign, None, True).experiment({}, 0)
    seen = {int(number) for batch in batches(tuned) for number in batch.example_id}
    first_us = quality.streams.first_scored(windows, 0.25)
    early = {int(n) for b in batches(whole) for n in b.example_id[b.event_time_us < first_us]}
    assert seen == early
    assert 0 < len(seen) < ROWS


def test_campaign_runs_what_it_has_not_run(quality: Any, experiment_path: Path, tmp_path: Path) -> None:
    campaign = quality.campaign.Campaign(experiment_path, (), tmp_path / "out")
    small = {"backbone": {"name": "dlrm", "hidden": [4]}}
    first = campaign.measure("small", small, 1)
    log = tmp_path / "out" / "records.jsonl"
    with log.open("a") as file:
        file.write('{"key": "cut off by a')
    assert campaign.measure("small", small, 1) == first
    other = campaign.measure("small", small, 2)
    assert [json.loads(line)["key"] for line in log.read_text().splitlines()[::2]] == [first["key"], other["key"]]
    assert first["ne"] != other["ne"]
    assert set(quality.campaign.Log(log).records) == {first["key"], other["key"]}
    assert list((tmp_path / "out").iterdir()) == [log]


def test_campaign_records_a_failure_and_tries_again(quality: Any, experiment_path: Path, tmp_path: Path) -> None:
    campaign = quality.campaign.Campaign(experiment_path, (), tmp_path / "out")
    wild = {"optimizer": {"dense": {"name": "sgd", "lr": 1e30}, "tables": {"lr": 0.1}}}
    failed = campaign.measure("wild", wild, 1)
    assert failed["error"]
    assert not campaign.log.records
    calm = campaign.measure("calm", {}, 1)
    assert quality.campaign.best([failed, calm]) is calm
    with pytest.raises(RuntimeError, match="wild: every learning rate failed"):
        quality.campaign.best([failed])


def test_tuning_finds_the_best_of_as_many_points_as_it_may_try(
    quality: Any, experiment_path: Path, tmp_path: Path
) -> None:
    campaign = quality.campaign.Campaign(experiment_path, (), tmp_path / "out")
    found = campaign.tune("small", {"backbone": {"name": "dlrm", "hidden": [4]}}, points=3, start=(0.002, 0.4))
    optimizers = {record["ne"]: record["settings"]["optimizer"] for record in campaign.log.records.values()}
    rates = {(optimizer["dense"]["lr"], optimizer["tables"]["lr"]) for optimizer in optimizers.values()}
    assert rates == {(0.002, 0.4), (0.002, 0.8), (0.002, 0.2)}
    assert found["ne"] == min(optimizers)
    assert found["settings"]["optimizer"] == optimizers[found["ne"]]


def test_table_refuses_runs_of_different_rows(quality: Any) -> None:
    record = {"model": "a", "seed": 1, "examples": 10, "base_rate": 0.5, "ne": 0.9, "auc": 0.6, "settings": {}}
    record |= {"parameters": {"dense": 3}, "flops_per_example": 7.0, "train_examples_per_second": 5.0}
    record |= {"versions": {"exfm": "0"}, "processor": "p", "cpus": 1, "threads": 1}
    other = record | {"seed": 2, "ne": 0.8}
    better = record | {"model": "b", "ne": 0.7}
    lines = quality.tables.table([record, other, better]).splitlines()
    assert lines[-2].startswith("| b | 0.7000 |")
    assert lines[-1].startswith("| a | 0.8500 ± 0.0707 | 0.6000 ± 0.0000 | 1, 2 | 3 | 7 | 5 | default |")
    with pytest.raises(ValueError, match="different rows"):
        quality.tables.table([record, other | {"examples": 11}])
