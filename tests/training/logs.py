"""A small Parquet log, and experiments over it, for tests of the stream loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

import exfm
from exfm.experiment.run import build_plan
from exfm.scheduling.identity import open_run
from exfm.supervision.store import open_store
from exfm.training.loop import StreamLoop

DAY_US = 86_400_000_000
START_US = 1_700_006_400_000_000  # a midnight
DAYS = 6


def make_log(rows: int = 1_800, seed: int = 0) -> pa.Table:
    """Six days of impressions with a user, an item, a number, a history and two labels that depend on them."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, 40, rows), random.integers(0, 30, rows)
    price = random.normal(3.0, 2.0, rows)
    lengths = random.integers(0, 6, rows)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    history = random.integers(0, 30, int(offsets[-1]))
    logit = np.sin(user) + np.cos(item) + 0.2 * price - 1.0
    click = random.random(rows) < 1 / (1 + np.exp(-logit))
    buy = click & (random.random(rows) < 0.4)
    time = START_US + np.sort(random.integers(0, DAYS * DAY_US, rows))
    return pa.table(
        {
            "example_id": pa.array(np.arange(rows) * 7 + 3),
            "event_time": pa.array(time, pa.timestamp("us", "UTC")),
            "user": user,
            "item": item,
            "price": price,
            "history": pa.ListArray.from_arrays(pa.array(offsets), pa.array(history)),
            "click": click.astype(np.int8),
            "buy": buy.astype(np.int8),
        }
    )


def write_log(folder: Path, table: pa.Table) -> str:
    """Writes each third of the log to a Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    third = table.num_rows // 3 + 1
    for number in range(3):
        pq.write_table(table.slice(number * third, third), folder / f"part-{number}.parquet", row_group_size=250)
    return str(folder)


def experiment_dict(path: str, run_dir: str, *, labels: Sequence[str] = ("click",)) -> dict[str, Any]:
    """An FM with everything, a VM with two features and its control; ``buy`` is known two days late."""
    delays = {"buy": {"delay": "2d"}}
    return {
        "name": "test",
        "run_dir": run_dir,
        "stream": {
            "source": {
                "name": "parquet",
                "path": path,
                "group": "user",
                "labels": [{"name": name, **delays.get(name, {})} for name in labels],
                "features": [
                    {"name": "user", "kind": "categorical", "rows": 64},
                    {"name": "item", "kind": "categorical", "rows": 64},
                    {"name": "price", "kind": "dense"},
                    {
                        "name": "history",
                        "kind": "sequence",
                        "max_length": 4,
                        "fields": [{"name": "item", "column": "history", "rows": 64, "table": "item"}],
                    },
                ],
            },
            "window": "1d",
            "chunk_rows": 128,
        },
        "evaluation": {"skip": 0.25, "replicates": 100},
        "models": {
            "fm": {
                "backbone": {"name": "wukong", "layers": 1},
                "sequence_encoder": {"name": "din"},
                "embedding_dim": 8,
                "batch_size": 64,
            },
            "vm": {
                "backbone": {"name": "dlrm"},
                "features": ["user", "item"],
                "embedding_dim": 8,
                "batch_size": 64,
                "transfer": [{"name": "auxiliary_head", "teacher": "fm"}],
                "control": True,
            },
        },
    }


def stream_rows(experiment: exfm.Experiment) -> pa.Table:
    """Reads all rows of an experiment's stream."""
    span = experiment.source.time_range()
    return pa.Table.from_batches(experiment.source.read(exfm.sources.Window(0, span.start_us, span.end_us)))


def load(folder: Path, config: dict[str, Any], *overrides: str) -> exfm.Experiment:
    """Writes the experiment to a file and loads it."""
    path = folder / f"{config['name']}.yaml"
    path.write_text(yaml.safe_dump(config))
    return exfm.load_experiment(str(path), overrides)


def train(experiment: exfm.Experiment) -> None:
    """Does all stages of an experiment as a run does, and leaves out its evaluation and its report."""
    store, plan = open_store(experiment), build_plan(experiment)
    if plan.process_group.is_rank_zero:
        open_run(experiment, store)
    trained = [arm.name for arm in experiment.arms if arm.name not in store.borrowed]
    loop = StreamLoop(experiment, store, plan, lambda _: None, trained, [*trained, *experiment.frozen])
    loop.advance()
    assert not loop.waiting_for
    plan.process_group.close()


def rows_by_window(run_dir: str, folder: str, model: str) -> dict[int, pa.Table]:
    """Reads a model's predictions or supervision by window, and checks that no file of a window is missing or extra."""
    files: dict[int, list[Path]] = {}
    for file in sorted(Path(run_dir, folder, model).glob("*.parquet")):
        files.setdefault(int(file.stem.split("-")[1]), []).append(file)
    return {window: in_order(paths) for window, paths in files.items()}


def in_order(paths: list[Path]) -> pa.Table:
    """Reads the rows of a window from the files of its processes, in the order of the stream."""
    count = len(paths)
    shards = [path.stem.split("-")[2:-1] for path in paths]
    assert shards == ([[]] if count == 1 else [[str(number), "of", str(count)] for number in range(count)])
    table = pa.concat_tables(map(pq.read_table, paths))
    if count == 1:
        return table
    assert len(set(table["position"].to_pylist())) == table.num_rows
    return table.sort_by("position").drop_columns("position").combine_chunks()


def predictions(run_dir: str, model: str) -> dict[int, pa.Table]:
    """A model's predictions by window."""
    return rows_by_window(run_dir, "predictions", model)


def supervision(run_dir: str, teacher: str) -> dict[int, pa.Table]:
    """A teacher's supervision by window."""
    return rows_by_window(run_dir, "supervision", teacher)


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Removes times and speeds from results."""
    models = {
        name: {key: value for key, value in model.items() if key != "train_examples_per_second"}
        for name, model in results["models"].items()
    }
    return {**results, "models": models, "time": None}


def differences(actual: Any, expected: Any, path: str = "") -> list[str]:
    """Lists the differences of two results, times and speeds apart: key path, actual and expected value."""
    if path == "":
        actual, expected = timeless(actual), timeless(expected)
    if isinstance(actual, dict) and isinstance(expected, dict):
        keys = {**actual, **expected}
        return [d for key in keys for d in differences(actual.get(key), expected.get(key), f"{path}.{key}")]
    if isinstance(actual, list) and isinstance(expected, list) and len(actual) == len(expected):
        pairs = enumerate(zip(actual, expected, strict=True))
        return [d for index, pair in pairs for d in differences(*pair, f"{path}.{index}")]
    return [] if actual == expected else [f"{path}: {actual!r}, not {expected!r}"]
