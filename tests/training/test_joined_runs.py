"""Runs over `joined` logs: a store whose logs grow day by day ends with the figures of the whole logs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
from exfm.supervision.store import Store
from tests.plugins.sources import EXAMPLES
from tests.training.logs import DAY_US, START_US, load, train

pytest.importorskip("duckdb", reason="needs the package duckdb")

ROWS = 240
DAYS, DAY_MS, START_MS = 2, DAY_US // 1000, START_US // 1000
LOGS = {"impressions": "shown_at", "clicks": "clicked_at", "purchases": "bought_at", "profiles": "updated_at"}


def store_logs(rows: int = ROWS) -> dict[str, pa.Table]:
    """Two days of a store: clicks within half an hour, purchases within a day, profiles that change."""
    random = np.random.default_rng(0)
    shown_at = START_MS + np.sort(random.integers(0, DAYS * DAY_MS, rows))
    user, item = random.integers(0, 30, rows), random.integers(0, 20, rows)
    clicked = np.flatnonzero(random.random(rows) < 1 / (1 + np.exp(-np.sin(user) - np.cos(item))))
    bought = clicked[random.random(clicked.size) < 0.4]
    users = np.arange(120) % 30
    # An event of a stranger ends each log after the last impression.
    end = [START_MS + DAYS * DAY_MS + 1]
    return {
        "impressions": pa.table(
            {"impression_id": np.arange(rows), "shown_at": shown_at, "user_id": user, "item_id": item}
        ),
        "clicks": pa.table(
            {
                "impression_id": np.append(clicked, -1),
                "clicked_at": np.append(shown_at[clicked] + random.integers(0, 1_800_000, clicked.size), end),
                "user_id": np.append(user[clicked], -1),
                "item_id": np.append(item[clicked], -1),
            }
        ),
        "purchases": pa.table(
            {
                "bought_at": np.append(shown_at[bought] + random.integers(0, DAY_MS, bought.size), end),
                "user_id": np.append(user[bought], -1),
                "item_id": np.append(item[bought], -1),
            }
        ),
        "profiles": pa.table(
            {
                "user_id": users,
                "updated_at": START_MS + random.integers(0, DAYS * DAY_MS, 120),
                "country": pa.array([f"c{number % 3}" for number in users]),
                "segment": random.integers(0, 5, 120),
            }
        ),
    }


def write_day(folder: Path, day: int) -> None:
    """Writes a day of all logs, a file each."""
    for name, log in store_logs().items():
        age_ms = log.column(LOGS[name]).to_numpy() - START_MS
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(log.filter(pa.array(age_ms // DAY_MS == day)), folder / name / f"{day}.parquet")


def example(folder: Path, run_dir: Path, day: int) -> dict[str, Any]:
    """The example with small models, on the logs of a folder, which end with the last day."""
    config = dict(yaml.safe_load((EXAMPLES / "joined.yaml").read_text(encoding="utf-8")))
    source = config["stream"]["source"]
    source["path"] = str(folder / "impressions")
    for name, log in source["logs"].items():
        log["path"] = str(folder / name)
    if day == DAYS:
        source["complete_until"] = f"{datetime.fromtimestamp(START_US // 10**6, UTC) + timedelta(days=day + 1)}"
    config["stream"] |= {"window": "1d", "chunk_rows": 128}
    small = {"embedding_dim": 4, "batch_size": 64}
    config["models"]["fm"] |= {"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "mean"}, **small}
    config["models"]["vm"] |= {"backbone": {"name": "mlp"}, "control": False, **small}
    return config | {"run_dir": str(run_dir), "evaluation": {"skip": 0, "replicates": 100}}


def test_logs_that_grow_day_by_day_give_the_figures_of_the_whole_logs(tmp_path: Path) -> None:
    runs: dict[str, dict[str, pa.Table]] = {"whole": {}, "daily": {}}
    for kind, tables in runs.items():
        folder, run_dir = tmp_path / f"{kind}-logs", tmp_path / kind
        for day in range(DAYS + 1):
            write_day(folder, day)
            experiment = load(tmp_path, example(folder, run_dir, day))
            if kind == "daily" and day < DAYS:
                train(experiment)
        results = exfm.run(experiment)
        assert results["data"]["late_rows"] == 0 and not any("no label" in note for note in results["notes"])
        store = Store(str(run_dir), {})
        for model in ("fm", "vm"):
            tables[model] = pa.concat_tables([store.predictions(model, window) for window in store.windows(model)])
    for model, daily in runs["daily"].items():
        assert daily.num_rows == ROWS and daily.equals(runs["whole"][model])
    by_id = runs["daily"]["vm"].sort_by("example_id")
    clicks = store_logs()["clicks"].column("impression_id").to_numpy()
    assert np.array_equal(by_id.column("label_click").to_numpy(), np.isin(np.arange(ROWS), clicks))
    # A purchase counts once at most.
    assert 0 < by_id.column("label_purchase").to_numpy().sum() <= store_logs()["purchases"].num_rows - 1
