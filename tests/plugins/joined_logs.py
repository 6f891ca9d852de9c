"""Small random logs of impressions, clicks, purchases and profiles, and their join in plain Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
MINUTE = 60_000_000
WITHIN, KEEP, MOST = 5 * MINUTE, 20 * MINUTE, 3

SCHEMAS = {
    "impressions": pa.schema(
        [("id", pa.int64()), ("at", pa.int64()), ("user", pa.string()), ("item", pa.int32()), ("shown", pa.int8())]
    ),
    "clicks": pa.schema([("id", pa.int64()), ("at", pa.int64()), ("user", pa.string()), ("item", pa.int64())]),
    "buys": pa.schema([("at", pa.int64()), ("user", pa.string()), ("item", pa.int64()), ("kept", pa.int8())]),
    "profiles": pa.schema([("at", pa.int64()), ("user", pa.string()), ("country", pa.string()), ("age", pa.float64())]),
}

FIELDS: dict[str, Any] = {
    "path": "{folder}/impressions",
    "example_id": "id",
    "event_time": "at",
    "time_unit": "us",
    "group": "user",
    "logs": {
        "clicks": {"path": "{folder}/clicks", "time": "at", "time_unit": "us"},
        "buys": {"path": "{folder}/buys", "time": "at", "time_unit": "us"},
        "profiles": {"path": "{folder}/profiles", "time": "at", "time_unit": "us"},
    },
    "labels_from": {
        "click": {"log": "clicks", "key": "id", "within": "5m"},
        "buy": {"log": "buys", "key": ["user", "item"], "within": "5m", "value": "kept"},
    },
    "as_of": {"profile": {"log": "profiles", "key": "user", "columns": ["country", "age"]}},
    "histories": {
        "recent": {
            "log": "clicks",
            "key": {"user": "user"},
            "columns": {"recent_items": "item"},
            "times": "recent_times",
            "max_length": MOST,
            "keep": "20m",
        }
    },
    "labels": [{"name": "click", "delay": "5m"}, {"name": "buy", "delay": "10m"}],
    "features": [
        {"name": "user", "kind": "categorical", "rows": 64},
        {"name": "item", "kind": "categorical", "rows": 64},
        {"name": "country", "kind": "categorical", "rows": 64},
        {
            "name": "history",
            "kind": "sequence",
            "max_length": MOST,
            "times": {"column": "recent_times", "holds": "time"},
            "fields": [{"name": "item", "column": "recent_items", "rows": 64, "table": "item"}],
        },
    ],
}


@dataclass(frozen=True)
class Logs:
    """The rows of each log, in any order."""

    impressions: Sequence[Row]
    clicks: Sequence[Row]
    buys: Sequence[Row]
    profiles: Sequence[Row]

    @classmethod
    def random(cls, seed: int, impressions: int = 60, events: int = 80, minutes: int = 60) -> Logs:
        """Draws logs whose times often coincide, with null keys; the last event of each log is after all windows."""
        random = np.random.default_rng(seed)

        def times(count: int) -> list[int]:
            return (random.integers(0, minutes * 2, count) * (MINUTE // 2)).tolist()

        def users(count: int) -> list[str | None]:
            return [None if user == 5 else f"u{user}" for user in random.integers(0, 6, count)]

        def items(count: int) -> list[int]:
            return random.integers(0, 4, count).tolist()

        def rows(**columns: Sequence[Any]) -> list[Row]:
            return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

        shown = rows(id=range(100, 100 + impressions), at=times(impressions), user=users(impressions))
        for row, item in zip(shown, items(impressions), strict=True):
            row |= {"item": item, "shown": 1}
        picked = random.integers(0, max(impressions, 1), events) + 100
        clicks = rows(id=picked.tolist(), at=times(events), user=users(events), item=items(events))
        for click in clicks[::2]:
            click["at"] = next(row["at"] for row in shown if row["id"] == click["id"]) + int(
                random.integers(0, 13) * MINUTE // 2
            )
        kept = random.integers(0, 2, events).tolist()
        buys = rows(at=times(events), user=users(events), item=items(events), kept=kept)
        countries = [f"c{number}" for number in random.integers(0, 3, events)]
        profiles = rows(at=times(events), user=users(events), country=countries, age=random.random(events).tolist())
        end = (minutes + 30) * MINUTE
        clicks.append({"id": 1, "at": end, "user": "nobody", "item": 1})
        buys.append({"at": end, "user": "nobody", "item": 1, "kept": 1})
        return cls(shown, clicks, buys, profiles)

    def replaced_from(self, time_us: int, later: Logs) -> Logs:
        """Takes events at or after a time, and impressions after it, from other logs."""
        shown = [row for row in self.impressions if row["at"] <= time_us]
        shown += [{**row, "id": row["id"] + 10_000} for row in later.impressions if row["at"] > time_us]
        logs: dict[str, Sequence[Row]] = {"impressions": shown}
        for name in ("clicks", "buys", "profiles"):
            before = [row for row in getattr(self, name) if row["at"] < time_us]
            logs[name] = [*before, *(row for row in getattr(later, name) if row["at"] >= time_us)]
        return Logs(**logs)

    def with_events_of_all(self, time_us: int) -> Logs:
        """Adds an event of every user and impression at a time to each log of events."""
        users = [f"u{number}" for number in range(5)]
        clicks = [{"id": 100 + number, "at": time_us, "user": users[number % 5], "item": 9} for number in range(60)]
        buys = [{"at": time_us, "user": user, "item": item, "kept": 1} for user in users for item in range(4)]
        profiles = [{"at": time_us, "user": user, "country": "zz", "age": 9.0} for user in users]
        return Logs(self.impressions, [*self.clicks, *clicks], [*self.buys, *buys], [*self.profiles, *profiles])

    def write(self, folder: Path, seed: int = 0, files: int = 1, group_rows: int = 1000, first_file: int = 0) -> None:
        """Writes each log, shuffled, as some files of row groups of some rows."""
        random = np.random.default_rng(seed)
        for name, schema in SCHEMAS.items():
            rows = getattr(self, name)
            (folder / name).mkdir(parents=True, exist_ok=True)
            number = random.integers(0, files, len(rows))
            order = random.permutation(len(rows))
            if files == 1:
                order = np.argsort([row["at"] for row in rows], kind="stable")
            for file in range(files):
                picked = [rows[row] for row in order if number[row] == file]
                table = pa.Table.from_pylist(picked, schema)
                size = 4 * group_rows if name == "impressions" else group_rows
                pq.write_table(table, folder / name / f"{first_file + file}.parquet", row_group_size=size)


def joined_rows(logs: Logs) -> list[Row]:
    """Joins the logs, row by row, in the order of time and id."""
    clicks_end, buys_end = (max(event["at"] for event in events) for events in (logs.clicks, logs.buys))
    shown_end = max(row["at"] for row in logs.impressions) + 1
    expected: list[Row] = []
    for row in sorted(logs.impressions, key=lambda row: (row["at"], row["id"])):
        at = row["at"]
        click = any(e["id"] == row["id"] and at <= e["at"] <= at + WITHIN for e in logs.clicks)
        profiles = [p for p in logs.profiles if p["user"] == row["user"] is not None and p["at"] < at]
        profile = max(profiles, key=lambda p: (p["at"], p["country"], p["age"]), default=None)
        history = [
            (e["at"], e["item"])
            for e in logs.clicks
            if e["user"] == row["user"] is not None and at - KEEP <= e["at"] < at
        ]
        history = sorted(history)[-MOST:]
        expected.append(
            {
                "id": row["id"],
                "at": at,
                "user": row["user"],
                "item": row["item"],
                "click": int(click) if at + WITHIN < clicks_end else None,
                "buy": _buy(row, logs) if at + WITHIN < min(buys_end, shown_end) and row["user"] else None,
                "country": profile and profile["country"],
                "recent_items": [item for _, item in history],
                "recent_times": [time for time, _ in history],
            }
        )
    return expected


def _buy(row: Row, logs: Logs) -> float:
    """Returns the label of the first purchase that follows an impression before the next impression of its keys."""

    def matches(other: Mapping[str, Any]) -> bool:
        return bool(other["user"] == row["user"] and other["item"] == row["item"])

    following = [e for e in logs.buys if matches(e) and row["at"] <= e["at"] <= row["at"] + WITHIN]
    for event in sorted(following, key=lambda e: (e["at"], e["kept"])):
        taken = any(matches(other) and row["at"] < other["at"] <= event["at"] for other in logs.impressions)
        return 0.0 if taken else float(event["kept"])
    return 0.0
