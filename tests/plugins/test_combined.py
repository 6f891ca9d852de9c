"""`combined`: the logs of two products are as a log that was merged by hand, bit for bit."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.data.time_order import in_time_order
from exfm.data.validation import RowChecker
from exfm.testing import DataSourceTests
from exfm_plugins.sources.combined.source import Combined
from tests.plugins.sources import everything
from tests.training.logs import predictions

HOUR = 3_600_000_000
START_US = 1_700_006_400_000_000
APP: dict[str, Any] = {
    "name": "parquet",
    "example_id": "impression",
    "event_time": "shown_at",
    "group": "user",
    "labels": [{"name": "click"}, {"name": "install"}],
    "features": [
        {"name": "user", "kind": "categorical", "rows": 64},
        {"name": "item", "kind": "categorical", "rows": 64},
        {"name": "page", "column": "screen", "kind": "categorical", "rows": 16},
        {"name": "price", "kind": "dense"},
        {
            "name": "history",
            "kind": "sequence",
            "max_length": 4,
            "times": {"column": "ages"},
            "fields": [{"name": "item", "column": "past", "rows": 64, "table": "item"}],
        },
    ],
}
WEB: dict[str, Any] = {
    "name": "parquet",
    "event_time": "time",
    "group": "user_id",
    "labels": [{"name": "click", "column": "clicked"}],
    "features": [
        {"name": "user", "column": "user_id", "kind": "categorical", "rows": 64},
        {"name": "item", "column": "sku", "kind": "categorical", "rows": 64},
        {"name": "page", "column": "url", "kind": "categorical", "rows": 32},
        {"name": "price", "kind": "dense"},
        {"name": "query", "kind": "multi_valued", "rows": 32},
    ],
}

ADS = {"name": "synthetic_ads", "days": 1, "rows_per_day": 150, "users": 9, "ads": 24, "advertisers": 3}


def app(times: list[int]) -> pa.Table:
    """Rows of the app; ids and values follow from the time."""
    number = np.arange(len(times))
    return pa.table(
        {
            "impression": number,
            "shown_at": pa.array([START_US + time for time in times], pa.timestamp("us")),
            "user": number % 7,
            "item": number * 5 % 11,
            "screen": pa.array([f"screen {n % 3}" for n in number]),
            "price": number % 4 / 2,
            "past": pa.array([[n % 9, n % 5][: n % 3] for n in number.tolist()], pa.list_(pa.int64())),
            "ages": pa.array([[5.0, 2.0][: n % 3] for n in number.tolist()], pa.list_(pa.float64())),
            "click": (number % 2).astype(np.int8),
            "install": pa.array([None if n % 5 == 0 else n % 3 // 2 for n in number.tolist()], pa.int8()),
        }
    )


def web(times: list[int]) -> pa.Table:
    """Rows of the web site, with the same example ids as the app's."""
    number = np.arange(len(times))
    return pa.table(
        {
            "example_id": number,
            "time": pa.array([START_US + time for time in times], pa.timestamp("us")),
            "user_id": number % 7,
            "sku": number * 3 % 11,
            "url": pa.array([f"page {n % 9}" for n in number]),
            "price": number % 6 / 3,
            "query": pa.array([[n % 8, n % 3][: n % 3] for n in number.tolist()], pa.list_(pa.int64())),
            "clicked": (number % 3 // 2).astype(np.int8),
        }
    )


def put(folder: Path, app_times: list[int], web_times: list[int]) -> dict[str, Any]:
    """Writes both logs, and returns the fields of a source over them."""
    for name, rows in (("app", app(app_times)), ("web", web(web_times))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / name / "part-0.parquet", row_group_size=16)
    return fields(str(folder))


def fields(folder: str, **changed: Any) -> dict[str, Any]:
    sources = {"app": APP | {"path": f"{folder}/app"}, "web": WEB | {"path": f"{folder}/web"}}
    return {"sources": sources, "apart": ["page"]} | changed


def source(config: dict[str, Any]) -> Combined:
    return Combined(Combined.Config.model_validate(config))


def hours(count: int, step: int) -> list[int]:
    return [number * step * HOUR // 60 for number in range(count)]


class TestCombined(DataSourceTests):
    component = Combined
    plugin = exfm_plugins.sources
    configs = (fields("{folder}"), fields("{folder}", apart=["page", "user", "item", "click"]))

    def write(self, folder: Path) -> None:
        put(folder, hours(150, 5), hours(100, 7))

    def grow(self, folder: Path) -> None:
        for name, rows in (("app", app(hours(200, 5)).slice(150)), ("web", web(hours(140, 7)).slice(100))):
            pq.write_table(rows, folder / name / "part-1.parquet")


class TestOfSourcesInOrder(DataSourceTests):
    component = Combined
    plugin = exfm_plugins.sources
    configs = ({"sources": {name: ADS | {"seed": seed} for seed, name in enumerate(("app", "web"))}},)


def merged_by_hand(config: dict[str, Any]) -> pa.Table:
    """Both logs as a single table, with the ids of the combined stream."""
    stream = source(config)
    tables = []
    for product, spec in config["sources"].items():
        rows = pq.read_table(f"{spec['path']}/part-0.parquet")
        ids = next(item for item in stream._products if item.name == product).example_ids
        key = "impression" if product == "app" else "example_id"
        same = {"item": "item", "user": "user", "price": "price"} if product == "app" else {
            "item": "sku", "user": "user_id", "price": "price"
        }  # fmt: skip
        columns = {
            "example_id": ids(rows[key].combine_chunks()),
            "event_time": rows["shown_at" if product == "app" else "time"],
            "group": rows[same["user"]],
            "domain": pa.array([product] * rows.num_rows),
            "click": rows["click" if product == "app" else "clicked"],
            **{name: rows[column] for name, column in same.items()},
        }
        if product == "app":
            columns |= {"install": rows["install"], "app_page": rows["screen"]}
            columns |= {"history.item": rows["past"], "history.times": rows["ages"]}
        else:
            columns |= {"web_page": rows["url"], "query": rows["query"]}
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables, promote_options="default")
    return table.sort_by([("event_time", "ascending"), ("example_id", "ascending")])


def run(
    stream: dict[str, Any], run_dir: Path, windows: int | None = None, only: Sequence[str] = ("fm", "app_vm")
) -> dict[str, Any]:
    models = {
        "fm": {
            "backbone": {"name": "dlrm", "hidden": [8]},
            "sequence_encoder": {"name": "mean"},
            "embedding_dim": 4,
            "batch_size": 32,
        },
        "alone": {
            "backbone": {"name": "dlrm", "hidden": [8]},
            "features": ["user", "item", "web_page", "domain"],
            "embedding_dim": 4,
            "batch_size": 32,
        },
        "app_vm": {
            "batch_size": 32,
            "backbone": {"name": "dlrm", "hidden": [8]},
            "features": ["user", "item", "price"],
            "where": {"domain": "app"},
            "transfer": [{"name": "auxiliary_head", "teacher": "fm"}],
            "control": True,
            "embedding_dim": 4,
        },
    }
    experiment = {
        "name": "products",
        "run_dir": str(run_dir),
        "stream": {"source": stream, "window": "12h", "chunk_rows": 32},
        "evaluation": {"replicates": 100},
        "models": {name: models[name] for name in only},
    }
    path = run_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(experiment))
    return exfm.run(exfm.load_experiment(str(path)), windows=windows)


def test_a_run_is_that_of_the_log_merged_by_hand(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Two rows of both products at most times, and 20 rows of the app after the web site's end.
    config = put(tmp_path, hours(140, 10), hours(60, 20))
    with caplog.at_level(logging.WARNING):
        results = run({"name": "combined", **config}, tmp_path / "combined")
    assert "web ends at" in caplog.text and "wait for it" in caplog.text
    table = merged_by_hand(config)
    end = source(config).time_range().end_us
    table = table.filter(pa.array(table["event_time"].cast(pa.int64()).to_numpy() < end))
    assert 0 < 200 - table.num_rows == 140 - 119
    (tmp_path / "merged").mkdir()
    pq.write_table(table, tmp_path / "merged" / "part-0.parquet")
    schema = source(config).schema().model_dump(mode="json")
    by_hand = run({"name": "parquet", "path": str(tmp_path / "merged"), **schema}, tmp_path / "by-hand")
    for model in ("fm", "app_vm", "app_vm.control"):
        combined, merged = (predictions(str(tmp_path / name), model) for name in ("combined", "by-hand"))
        assert combined.keys() == merged.keys() and all(rows.equals(merged[at]) for at, rows in combined.items())
        assert sum(rows.num_rows for rows in combined.values()) == results["models"][model]["examples"]
        assert results["models"][model]["tasks"] == by_hand["models"][model]["tasks"]
    assert results["models"]["app_vm"]["examples"] == 119 and results["models"]["fm"]["examples"] == 179


def test_a_run_goes_on_when_a_log_has_moved_and_grown(tmp_path: Path) -> None:
    put(tmp_path / "first", hours(80, 10), hours(40, 20))
    whole = put(tmp_path / "whole", hours(120, 10), hours(60, 20))
    moved = fields(str(tmp_path / "first"))
    few = {"name": "combined", **moved}
    run(few, tmp_path / "run", windows=1, only=["alone"])
    # A feature more of a product, which the running model does not read, and another path.
    web = whole["sources"]["web"]
    web["features"] = [*web["features"], {"name": "sku", "kind": "categorical", "rows": 8}]
    more = {"name": "combined", **whole}
    results, at_once = run(more, tmp_path / "run", only=["alone"]), run(more, tmp_path / "at-once", only=["alone"])
    assert results["models"]["alone"]["examples"] > 150
    assert results["models"]["alone"]["tasks"] == at_once["models"]["alone"]["tasks"]


def test_rows_have_what_their_product_has(tmp_path: Path) -> None:
    rows = everything(source(put(tmp_path, hours(6, 60), hours(6, 60))))
    by_product = {name: [row for row in rows if row["domain"] == name] for name in ("app", "web")}
    assert len({row["example_id"] for row in rows}) == len(rows) == 12
    for row in by_product["app"]:
        assert row["web_page"] is None and row["query"] == [] and row["app_page"].startswith("screen")
    for row in by_product["web"]:
        assert row["app_page"] is None and row["history.item"] == row["history.times"] == [] and row["install"] is None
    assert [row["item"] for row in by_product["web"]] == [number * 3 % 11 for number in range(6)]


def test_the_union_is_by_name(tmp_path: Path) -> None:
    schema = source(fields(str(tmp_path))).schema()
    assert [feature.name for feature in schema.features] == [
        "user", "item", "app_page", "price", "history", "web_page", "query", "domain"
    ]  # fmt: skip
    assert schema.tasks == ("click", "install") and schema.domain == "domain" and schema.group == "group"
    assert schema.tables() == {"user": 64, "item": 64, "app_page": 16, "web_page": 32, "query": 32, "domain": 4096}
    apart = source(fields(str(tmp_path), apart=["page", "item", "history", "click"])).schema()
    assert {"app_item", "web_item"} <= apart.tables().keys() and "item" not in apart.tables()
    (history,) = apart.sequences
    assert (history.name, history.fields[0].table) == ("app_history", "app_item")
    assert apart.tasks == ("app_click", "install", "web_click")


def test_a_true_probability_is_of_labels_that_all_products_have() -> None:
    simulated = source({"sources": {"first": ADS, "second": ADS}}).schema()
    assert all(label.oracle for label in simulated.labels)
    apart = source({"sources": {"first": ADS, "second": ADS}, "apart": ["click"]}).schema()
    assert {label.name: label.oracle for label in apart.labels} == {
        "first_click": "", "conversion": "conversion.oracle", "second_click": ""
    }  # fmt: skip


def test_columns_that_nobody_needs_are_not_read(tmp_path: Path) -> None:
    stream = source(put(tmp_path, hours(6, 60), hours(6, 60)))
    few = stream.schema().select(("query", "domain"))  # none of the app
    selected = stream.select(few)
    assert selected.schema() == few
    names = set(everything(selected)[0])
    assert names == {"example_id", "event_time", "group", "domain", "query", "click", "install"}
    read = [set(batch.schema.names) for batch in selected._products[0].source.read(exfm.sources.Window(0, 0, 2**60))]
    assert read and all("screen" not in columns for columns in read)


@given(
    app_steps=st.lists(st.integers(0, 20), min_size=1, max_size=25),
    web_steps=st.lists(st.integers(0, 20), min_size=1, max_size=25),
    rows_at_once=st.integers(2, 9),
)
def test_any_logs_are_merged(
    app_steps: list[int], web_steps: list[int], rows_at_once: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    # In any order in the files, but for two rows that let both logs cover the same time.
    config = put(folder, [0, 21, *app_steps], [0, 21, *web_steps])
    for spec in config["sources"].values():
        spec["batch_rows"] = rows_at_once
    stream = source(config)
    span = stream.time_range()
    batches = stream.read(exfm.sources.Window(0, span.start_us, span.end_us))
    checker = RowChecker(stream.schema(), skip=False, newest_us=0, in_order=False)
    ordered = list(in_time_order(map(checker.check, batches), stream.schema()))
    keys = [(row["event_time"], row["example_id"]) for batch in ordered for row in batch.to_pylist()]
    assert keys == sorted(keys) and len(keys) == len(app_steps) + len(web_steps) + 4
    table = merged_by_hand(config)
    assert [key[1] for key in keys] == table["example_id"].to_pylist()


def changed(product: str, **values: Any) -> dict[str, Any]:
    config = fields("/nowhere")
    config["sources"] = {name: spec | (values if name == product else {}) for name, spec in config["sources"].items()}
    return config


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (fields("/nowhere", apart=[]), ["'page' is not the same in app and web", "rows is 16 and 32", "apart: [page]"]),
        (fields("/nowhere", apart=["pagee"]), ["no product has a feature, label or table 'pagee'", "'page'"]),
        (changed("web", features=WEB["features"][:3]), ["dense feature 'price' of app is not in web"]),
        (changed("web", group=""), ["web has no `group`"]),
        (
            changed("web", labels=[{"name": "click", "delay": "1d"}]),
            ["'click' is not the same in app and web", "delay is", "apart: [click]"],
        ),
        (
            changed("web", features=[*WEB["features"], {"name": "domain", "kind": "categorical", "rows": 4}]),
            ["'domain', which is a column of the combined stream", "apart: [domain]"],
        ),
        (
            changed("web", features=[*WEB["features"], WEB["features"][0] | {"name": "y", "table": "app_page"}]),
            ["table 'app_page' is shared", "apart: [NAME]"],
        ),
        ({"sources": {"app": APP | {"path": "x"}}}, ["at least 2"]),
        ({"sources": {"my app": APP | {"path": "x"}, "web": WEB | {"path": "y"}}}, ["'my app'", "letters"]),
    ],
)  # fmt: skip
def test_products_that_do_not_fit_are_explained(config: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        source(config)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_product_that_begins_after_another_has_ended(tmp_path: Path) -> None:
    config = put(tmp_path, hours(3, 60), [30 * HOUR, 31 * HOUR])
    with pytest.raises(exfm.components.NotYetError, match=r"web begins at .* nothing of web would be read"):
        source(config).time_range()


def test_the_stream_goes_as_far_as_the_slowest_product(tmp_path: Path) -> None:
    stream = source(put(tmp_path, hours(6, 60), hours(6, 60)))
    before = stream.time_range()
    window = exfm.sources.Window(0, before.start_us, before.end_us + 24 * HOUR)
    pq.write_table(app(hours(9, 60)).slice(6), tmp_path / "app" / "part-1.parquet")
    assert stream.time_range() == before and rows_of_each(stream, window) == {"app": 6, "web": 6}
    pq.write_table(web(hours(8, 60)).slice(6), tmp_path / "web" / "part-1.parquet")
    # Of the app's three new rows that at the eighth hour waits.
    assert stream.time_range().end_us == before.end_us + 2 * HOUR
    assert rows_of_each(stream, window) == {"app": 8, "web": 8}
    names = [unit.name for unit in stream.parts()]
    # Two processes read the same rows where they have listed the same files.
    other, listed = source(fields(str(tmp_path))), stream.parts()
    assert other.pin(listed) and not other.pin(listed[:-1])
    files = ["app/part-0", "app/part-1", "web/part-0", "web/part-1"]
    assert names == [f"{file[:3]}: {tmp_path}/{file}.parquet" for file in files]


def rows_of_each(stream: Combined, window: exfm.sources.Window) -> dict[str, int]:
    domains = [row["domain"] for batch in stream.read(window) for row in batch.to_pylist()]
    return {name: domains.count(name) for name in ("app", "web")}


def test_bad_rows_name_the_product_and_the_file(tmp_path: Path) -> None:
    config = put(tmp_path, hours(6, 60), hours(6, 60))
    rows = app(hours(6, 60))
    price = rows["price"].to_pylist()
    price[3] = None
    rows = rows.set_column(rows.schema.names.index("price"), "price", pa.array(price, pa.float64()))
    pq.write_table(rows, tmp_path / "app" / "part-0.parquet")
    with pytest.raises(exfm.ConfigError, match=r"app: .*app/part-0.parquet, row 3: price: the value is missing"):
        run({"name": "combined", **config}, tmp_path / "run")
