"""`huggingface`: datasets on a disk, as saved and as Parquet files, sorted or as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import exfm
import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.huggingface.source import HuggingFace
from tests.plugins.sources import everything, rows_of, run_example

datasets = pytest.importorskip("datasets", reason="needs the package datasets")
SECOND = 1_000_000
FIELDS: dict[str, Any] = {
    "features": [
        {"name": "user", "kind": "categorical", "rows": 100},
        {
            "name": "history", "kind": "sequence", "max_length": 3,
            "fields": [{"name": "item", "column": "history_items", "rows": 9}],
        },
    ],
    "labels": [{"name": "click"}],
    "event_time": "shown_at",
}  # fmt: skip


def table(seconds: Sequence[int | None], kind: pa.DataType | None = None) -> pa.Table:
    """Rows numbered in the order given."""
    number = np.arange(len(seconds))
    return pa.table(
        {
            "example_id": number,
            "shown_at": pa.array(seconds, pa.int64()).cast(kind or pa.int64()),
            "user": [f"u{i % 7}" for i in number],
            "item": number % 5,
            "price": number * 0.5,
            "history_items": pa.array([list(range(i % 4)) for i in number], pa.list_(pa.int64())),
            "click": (number % 2).astype(np.int8),
            "unused": ["x"] * len(number),
        }
    )


def save(folder: Path, rows: pa.Table, shards: int = 1) -> str:
    datasets.Dataset(rows).save_to_disk(str(folder), num_shards=shards)
    return str(folder)


def source(path: Any, **config: Any) -> HuggingFace:
    return HuggingFace(HuggingFace.Config.model_validate(FIELDS | {"path": str(path), "time_unit": "s"} | config))


class TestHuggingFace(DataSourceTests):
    component = HuggingFace
    plugin = exfm_plugins.sources
    configs = (
        {**FIELDS, "path": "{folder}/sorted", "batch_rows": 7},
        {**FIELDS, "path": "{folder}/shuffled", "sort": True, "time_unit": "s", "split": "logs"},
        {**FIELDS, "path": "{folder}/files", "time_unit": "s"},
    )

    @pytest.fixture(autouse=True)
    def _own_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def write(self, folder: Path) -> None:
        seconds = [number // 3 * 60 for number in range(70)]
        save(folder / "sorted", table(seconds, pa.timestamp("s")), shards=3)
        shuffled = np.random.default_rng(0).permutation(seconds).tolist()
        datasets.DatasetDict({"logs": datasets.Dataset(table(shuffled))}).save_to_disk(str(folder / "shuffled"))
        (folder / "files").mkdir()
        for part in range(2):
            pq.write_table(table(seconds).slice(35 * part, 35), folder / "files" / f"train-{part}.parquet")


def test_rows_are_sorted_by_time_and_otherwise_as_given(tmp_path: Path) -> None:
    of = source(save(tmp_path / "d", table([30, 10, 20, 10])), sort=True)
    rows = everything(of)
    assert [row["example_id"] for row in rows] == [1, 3, 2, 0]
    assert rows[2]["history_items"] == [0, 1]
    assert set(rows[0]) == {"example_id", "shown_at", "user", "history_items", "click"}, "no more than is asked for"
    assert of.time_range() == exfm.sources.TimeRange(10 * SECOND, 30 * SECOND + 1)
    assert [row["example_id"] for row in rows_of(of.read(exfm.sources.Window(0, 15 * SECOND, 30 * SECOND)))] == [2]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_any_unit(tmp_path: Path, unit: str) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    counts = [second * per_second for second in (10, 20)]
    whole = source(save(tmp_path / "whole", table(counts)), time_unit=unit)
    stamps = source(save(tmp_path / "stamps", table(counts, pa.timestamp(unit))), time_unit="timestamp")
    for of in (whole, stamps):
        assert of.time_range() == exfm.sources.TimeRange(10 * SECOND, 20 * SECOND + 1)
        assert [row["shown_at"].second for row in everything(of)] == [10, 20]


def test_a_row_that_goes_back_stands_where_it_is(tmp_path: Path) -> None:
    of = source(save(tmp_path / "d", table([10, 30, 20, None, 40])))
    found = rows_of(of.read(exfm.sources.Window(0, 25 * SECOND, 35 * SECOND)))
    assert [row["example_id"] for row in found] == [1, 2, 3]
    assert found[2]["shown_at"] is None
    [batch] = of.read(exfm.sources.Window(0, 25 * SECOND, 35 * SECOND))
    assert exfm.sources.Origin.from_batch(batch) == exfm.sources.Origin(f"{tmp_path}/d, split 'train'", 1)


@pytest.mark.parametrize("sort", [False, True])
def test_a_row_without_a_time_stands_with_the_one_before_it(tmp_path: Path, sort: bool) -> None:
    """At the beginning it stands with the first time that is known, not in 1970."""
    of = source(save(tmp_path / "d", table([None, 100, None, 200, None])), sort=sort)
    assert of.time_range() == exfm.sources.TimeRange(100 * SECOND, 200 * SECOND + 1)
    for start, expected in ((100, [0, 1, 2]), (200, [3, 4])):
        found = rows_of(of.read(exfm.sources.Window(0, start * SECOND, (start + 1) * SECOND)))
        assert [row["example_id"] for row in found] == expected
        assert sum(row["shown_at"] is None for row in found) == len(found) - 1
    with pytest.raises(ValueError, match="column 'shown_at' is empty"):
        source(save(tmp_path / "none", table([None, None])), sort=sort).time_range()


def test_the_next_event_and_the_part_are_known(tmp_path: Path) -> None:
    path = save(tmp_path / "d", table([10, 10, 30]))
    of = source(path)
    following = [of.next_event_us(second * SECOND) for second in (0, 10, 11, 30, 31)]
    assert following == [10 * SECOND, 10 * SECOND, 30 * SECOND, 30 * SECOND, None]
    [part], [again] = of.parts(), source(path).parts()
    [batch] = of.read(exfm.sources.Window(0, 0, 100 * SECOND))
    assert (part.name, part.first_us, part.last_us) == (
        exfm.sources.Origin.from_batch(batch).file,
        10 * SECOND,
        30 * SECOND,
    )
    assert again == part
    [changed] = source(save(tmp_path / "e", table([10, 20, 30]))).parts()
    assert changed.version != part.version


def test_fewer_columns_are_needed_where_fewer_are_asked_for(tmp_path: Path) -> None:
    of = source(save(tmp_path / "d", table([10, 20]).drop_columns(["click", "history_items"])))
    user = of.schema().select(("user",)).model_copy(update={"labels": ()})
    assert [set(row) for row in everything(of.select(user))] == [{"example_id", "shown_at", "user"}] * 2
    with pytest.raises(ValueError, match="has no column"):
        of.time_range()


def test_the_example_runs(tmp_path: Path) -> None:
    path = save(tmp_path / "data", table([90 - number for number in range(60)]))
    assert run_example("huggingface", tmp_path, path=path)["models"]["fm"]["examples"] == 60


def test_what_is_wrong_is_explained(tmp_path: Path) -> None:
    path = save(tmp_path / "d", table([1]))
    column = [{"name": "usr", "kind": "categorical", "rows": 9}]
    with pytest.raises(ValueError, match=r"split 'train', has no column 'usr'\. Did you mean 'user'\?"):
        source(path, features=column).time_range()
    with pytest.raises(ValueError, match=r"column 'shown_at' is int64; expected a timestamp"):
        source(path, time_unit="timestamp").time_range()
    datasets.DatasetDict({"train": datasets.Dataset(table([1]))}).save_to_disk(str(tmp_path / "several"))
    with pytest.raises(ValueError, match=r"several' cannot be loaded: it has no split 'test'\. Allowed: train"):
        source(tmp_path / "several", split="test").time_range()
    with pytest.raises(ValueError, match="has no rows"):
        source(save(tmp_path / "empty", table([1]).slice(1))).time_range()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing' cannot be loaded"):
        source(tmp_path / "nothing").time_range()
