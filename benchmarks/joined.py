"""Rows per second of `joined` on generated logs, and of `parquet` on the same rows as they come out of the join.

    python benchmarks/joined.py --impressions 1000000 --days 8

Timed are all rows of the stream in the order of time, in windows of six hours, without a model. Both sources read the
rows in turns, because other work of a machine falls on both.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import exfm
from exfm_plugins.sources.joined.source import Joined
from exfm_plugins.sources.parquet.source import Parquet

DAY_US = 86_400_000_000
START_US = 20_000 * DAY_US
USERS, ITEMS = 50_000, 20_000

SCHEMA: dict[str, Any] = {
    "example_id": "id",
    "event_time": "at",
    "group": "user",
    "labels": [{"name": "click", "delay": "30m"}, {"name": "buy", "delay": "1d"}],
    "features": [
        {"name": "user", "kind": "categorical", "rows": 65536},
        {"name": "item", "kind": "categorical", "rows": 65536},
        {"name": "country", "kind": "categorical", "rows": 256},
        {"name": "segment", "kind": "categorical", "rows": 256},
        {
            "name": "history",
            "kind": "sequence",
            "max_length": 50,
            "times": {"column": "recent_times", "holds": "time"},
            "fields": [{"name": "item", "column": "recent_items", "rows": 65536, "table": "item"}],
        },
    ],
}
JOINS: dict[str, Any] = {
    "labels_from": {
        "click": {"log": "clicks", "key": "id", "within": "30m"},
        "buy": {"log": "buys", "key": ["user", "item"], "within": "1d"},
    },
    "as_of": {"profile": {"log": "profiles", "key": "user", "columns": ["country", "segment"]}},
    "histories": {
        "recent": {
            "log": "views",
            "key": "user",
            "columns": {"recent_items": "item"},
            "times": "recent_times",
            "max_length": 50,
            "keep": "7d",
        }
    },
}


def write_logs(folder: Path, impressions: int, days: int) -> None:
    """Writes a file a day of each log: twice as many views as impressions, a click for five, a purchase for fifty."""
    random = np.random.default_rng(0)

    def log(name: str, time_us: np.ndarray[Any, Any], **columns: Any) -> None:
        order = np.argsort(time_us, kind="stable")
        stamps = pa.array(time_us + START_US).cast(pa.timestamp("us"))
        rows = pa.table({"at": stamps, **columns}).take(pa.array(order))
        (folder / name).mkdir(parents=True)
        for day in range(days + 2):
            first, end = np.searchsorted(time_us[order], [day * DAY_US, (day + 1) * DAY_US])
            if end > first:
                pq.write_table(rows.slice(first, end - first), folder / name / f"{day}.parquet", row_group_size=131072)

    def times(count: int) -> np.ndarray[Any, Any]:
        return random.integers(0, days * DAY_US, count)

    shown_us = times(impressions)
    # A tenth of the users makes most of the traffic.
    user, item = (random.random(impressions) ** 3 * USERS).astype(int), random.integers(0, ITEMS, impressions)
    log("impressions", shown_us, id=np.arange(impressions), user=user, item=item)
    clicked = random.permutation(impressions)[: impressions // 5]
    log("clicks", shown_us[clicked] + random.integers(0, DAY_US // 24, clicked.size), id=clicked)
    bought = clicked[: impressions // 50]
    late_us = shown_us[bought] + random.integers(0, DAY_US, bought.size)
    log("buys", late_us, user=user[bought], item=item[bought])
    views = 2 * impressions
    viewers = (random.random(views) ** 3 * USERS).astype(int)
    log("views", times(views), user=viewers, item=random.integers(0, ITEMS, views))
    profiles = 4 * USERS
    of_user = np.arange(profiles) % USERS
    countries, segments = random.integers(0, 200, profiles), random.integers(0, 200, profiles)
    log("profiles", times(profiles), user=of_user, country=countries, segment=segments)


def joined_source(folder: Path, days: int) -> Joined:
    """Returns the source of the generated logs."""
    logs = {name: {"path": str(folder / name), "time": "at"} for name in ("clicks", "buys", "views", "profiles")}
    until = (np.datetime64(START_US, "us") + np.timedelta64(days + 2, "D")).astype(str) + "Z"
    config = {**SCHEMA, **JOINS, "path": str(folder / "impressions"), "logs": logs, "complete_until": until}
    return Joined(Joined.Config.model_validate(config))


def read_seconds(source: exfm.DataSource, target: Path | None = None) -> tuple[int, float, float]:
    """Reads the stream in windows of six hours, and writes a file for each window where a folder is given.

    Returns:
        The number of rows, and the seconds that reading took: by the clock, and of all processor cores.
    """
    span, rows, seconds, core_seconds = source.time_range(), 0, 0.0, 0.0
    for start_us in range(span.start_us // DAY_US * DAY_US, span.end_us, DAY_US // 4):
        started, begun = time.perf_counter(), time.process_time()
        batches = list(source.read(exfm.sources.Window(0, start_us, start_us + DAY_US // 4)))
        seconds += time.perf_counter() - started
        core_seconds += time.process_time() - begun
        rows += sum(batch.num_rows for batch in batches)
        if target is not None and batches:
            table = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches])
            pq.write_table(table, target / f"{start_us}.parquet", row_group_size=131072)
    return rows, seconds, core_seconds


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--impressions", type=int, default=1_000_000)
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_logs(folder, options.impressions, options.days)
        (folder / "rows").mkdir()
        read_seconds(joined_source(folder, options.days), folder / "rows")
        plain = Parquet.Config.model_validate({**SCHEMA, "path": str(folder / "rows")})
        for _ in range(options.repeats):
            for source in (joined_source(folder, options.days), Parquet(plain)):
                rows, seconds, core_seconds = read_seconds(source)
                figures = {"source": source.name, "rows": rows, "rows_per_second": round(rows / seconds)}
                peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                print(json.dumps(figures | {"core_seconds": round(core_seconds, 1), "peak_mb": peak_mb}), flush=True)


if __name__ == "__main__":
    main()
