"""A real S3 server holds the source and the whole workspace: same rows, same results, killed and resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

import exfm
import exfm_plugins.sources
from exfm.storage.workspace import Workspace
from exfm.testing import DataSourceTests
from exfm_plugins.sources.parquet.source import Parquet
from tests.processes import start_exfm
from tests.training.logs import differences, experiment_dict, make_log, write_log
from tests.training.object_store import s3_server


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The file system of a fresh server, with the buckets ``data`` and ``work``."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        filesystem = fsspec.filesystem("s3")
        filesystem.clear_instance_cache()
        filesystem = fsspec.filesystem("s3")
        for bucket in ("data", "work"):
            filesystem.mkdir(bucket)
        yield filesystem
        filesystem.clear_instance_cache()


def upload(store: Any, folder: str, log: pa.Table) -> str:
    """The log as three Parquet files; its URL."""
    for number, (start, end) in enumerate(pairwise([0, 100, 250, log.num_rows])):
        with store.open(f"{folder}/part-{number}.parquet", "wb") as file:
            pq.write_table(log.slice(start, end - start), file, row_group_size=60)
    return f"s3://{folder}"


class TestParquetOnS3(DataSourceTests):
    component = Parquet
    plugin = exfm_plugins.sources
    configs = (
        {
            "path": "s3://data/rows",
            "features": [{"name": "item", "kind": "categorical", "rows": 64}],
            "labels": [{"name": "click"}],
        },
    )

    @pytest.fixture(autouse=True)
    def _uploaded(self, store: Any) -> None:
        if not store.exists("data/rows"):
            upload(store, "data/rows", make_log(rows=300))


def test_new_objects_are_seen(store: Any) -> None:
    """A writer adds a file to the stream while a job follows it."""
    log = make_log(rows=300)
    url = upload(store, "data/growing", log.slice(0, 260))
    config = TestParquetOnS3.configs[0] | {"path": url}
    source = Parquet(Parquet.Config.model_validate(config))
    before = source.time_range()
    with fsspec.filesystem("s3", skip_instance_cache=True).open("data/growing/part-9.parquet", "wb") as file:
        pq.write_table(log.slice(260), file)
    assert source.time_range().end_us > before.end_us


def test_one_of_several_writers_commits(store: Any) -> None:
    first, second = Workspace("s3://work/commits"), Workspace("s3://work/commits")
    assert first.create("000000.json", b"1")
    assert not second.create("000000.json", b"2")
    assert second.read("000000.json") == b"1"
    assert second.names("") == ["000000.json"]


def test_killed_and_resumed_on_s3_equals_local(store: Any, tmp_path: Path) -> None:
    log = make_log(rows=400)
    local = experiment_dict(write_log(tmp_path / "log", log), str(tmp_path / "local"))
    remote = experiment_dict(upload(store, "data/log", log), "s3://work/run")
    for name, config in (("local", local), ("remote", remote)):
        config["stream"]["window"] = "2d"
        config["models"]["vm"]["control"] = False
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    process = start_exfm("run", str(tmp_path / "remote.yaml"))
    # The second window's first commit is there, and its last is not.
    while process.is_alive() and not store.exists("work/run/commits/train/fm/000001.json"):
        store.invalidate_cache()
        time.sleep(0.1)
    process.kill()
    process.join()
    store.invalidate_cache()
    assert not store.exists("work/run/results.json")
    resumed = exfm.run(exfm.load_experiment(str(tmp_path / "remote.yaml")))
    assert differences(resumed, exfm.run(exfm.load_experiment(str(tmp_path / "local.yaml")))) == []
    assert differences(json.loads(store.cat_file("work/run/results.json")), resumed) == []
    assert store.cat_file("work/run/report.html").startswith(b"<!doctype html>")
    written = {path.removeprefix("work/run/") for path in store.find("work/run")}
    assert written == {
        str(path.relative_to(tmp_path / "local")) for path in (tmp_path / "local").rglob("*") if path.is_file()
    }
