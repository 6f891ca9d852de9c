"""`jsonl`: exfm's requirements of a data source, and the promises of this source."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import exfm
import fsspec
import pyarrow as pa
import pytest
import yaml
from exfm.testing import DataSourceTests

import exfm_plugin_jsonl
from exfm_plugin_jsonl.source import JsonlSource

EXAMPLE = Path(__file__).parents[1] / "examples" / "jsonl.yaml"
LOG = EXAMPLE.with_name("log.jsonl.gz")
FIELDS: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["stream"]["source"]
FIELDS = {key: value for key, value in FIELDS.items() if key not in ("name", "path")}
LINES = gzip.decompress(LOG.read_bytes()).splitlines(keepends=True)


def packed(lines: Sequence[bytes], ending: str) -> bytes:
    text = b"".join(lines)
    if ending == ".zst":
        content: bytes = pa.compress(text, "zstd", asbytes=True)
        return content
    compressors: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}
    return compressors[ending](text)


class TestJsonlSource(DataSourceTests):
    component = JsonlSource
    plugin = exfm_plugin_jsonl
    configs = (
        {"path": "{folder}/one.jsonl", **FIELDS},
        {"path": "{folder}/days", **FIELDS},
        {"path": "file://{folder}/days/*.gz", **FIELDS},
    )

    def write(self, folder: Path) -> None:
        (folder / "one.jsonl").write_bytes(packed(LINES[:150], ""))
        (folder / "days").mkdir()
        for day, ending in enumerate((".zst", ".gz", ".bz2", ".gz")):
            lines = LINES[day * 60 : day * 60 + 60]
            (folder / "days" / f"{day}.jsonl{ending}").write_bytes(packed(lines, ending))
        (folder / "days" / "README").write_text("not a log")

    def grow(self, folder: Path) -> None:
        with (folder / "one.jsonl").open("ab") as log:
            log.write(b"".join(LINES[150:180]))
        (folder / "days" / "4.jsonl.gz").write_bytes(packed(LINES[-1:], ".gz"))


def source(path: object, **fields: Any) -> JsonlSource:
    return JsonlSource(JsonlSource.Config.model_validate({**FIELDS, "path": str(path), **fields}))


def rows_of(of: JsonlSource) -> list[dict[str, Any]]:
    time = of.time_range()
    return [row for batch in of.read(exfm.sources.Window(0, time.start_us, time.end_us)) for row in batch.to_pylist()]


def test_every_line_is_a_row_whatever_it_is_packed_in(tmp_path: Path) -> None:
    for ending in ("", ".gz", ".zst", ".bz2"):
        path = tmp_path / f"log.jsonl{ending}"
        path.write_bytes(packed(LINES, ending))
        rows = rows_of(source(path))
        for row, line in zip(rows, map(json.loads, LINES), strict=True):
            assert row["time"].isoformat().replace("+00:00", "Z") == line["time"]
            assert (row["id"], row["user.id"], row["user.age"]) == (line["id"], line["user"]["id"], line["user"]["age"])
            assert (row["item"], row["tags"], row["seen"]) == (line["item"], line["tags"], line["seen"])
            assert row["click"] == line["click"]


def test_a_file_is_read_a_block_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in LINES]
    padded = [json.dumps({**line, "unused": "x" * 20_000}).encode() + b"\n" for line in lines]
    path.write_bytes(b"".join(padded))
    of = source(path)
    time = of.time_range()
    batches = list(of.read(exfm.sources.Window(0, time.start_us, time.end_us)))
    assert len(batches) > 4 and sum(batch.num_rows for batch in batches) == len(lines)
    for batch in batches:
        assert json.loads(padded[exfm.sources.Origin.from_batch(batch).row])["id"] == batch["id"][0].as_py()


def test_any_fsspec_url() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/log/a.jsonl.gz", packed(LINES[:50], ".gz"))
    memory.pipe("/log/b.ndjson", packed(LINES[50:], ""))
    try:
        assert len(rows_of(source("memory://log"))) == len(LINES)
    finally:
        memory.rm("/log", recursive=True)


def test_a_folder_grows(tmp_path: Path) -> None:
    """Later calls see new rows, in order of time; each file is a part with its own version."""
    for name, lines in (("9.jsonl", LINES[:9]), ("10.jsonl", LINES[20:30])):
        (tmp_path / name).write_bytes(packed(lines, ""))
    of = source(tmp_path)
    assert len(rows_of(of)) == 19
    before = of.parts()
    assert [part.name.rpartition("/")[2] for part in before] == ["9.jsonl", "10.jsonl"]
    assert of.next_event_us(before[0].last_us + 1) == before[1].first_us
    assert of.next_event_us(before[1].last_us + 1) is None
    (tmp_path / "late.jsonl").write_bytes(packed(LINES[9:20], ""))
    (tmp_path / "10.jsonl").write_bytes(packed(LINES[20:31], ""))
    assert [row["id"] for row in rows_of(of)] == [json.loads(line)["id"] for line in LINES[:31]]
    after = of.parts()
    assert after[0] == before[0] and after[2].version != before[1].version


BROKEN: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({}, "no such file"),
    "no lines": ({"a.jsonl": b""}, "a.jsonl cannot be read as JSON lines"),
    "no JSON": ({"a.jsonl": b"time,click\n"}, "a.jsonl cannot be read as JSON lines"),
    "half a line": ({"a.jsonl": LINES[0] + LINES[1][:20]}, "a.jsonl cannot be read as JSON lines"),
    "not packed": ({"a.jsonl.gz": LINES[0]}, "a.jsonl.gz cannot be read as JSON lines"),
    "another type": (
        {
            "a.jsonl": LINES[0],
            "b.jsonl": LINES[1].replace(b'"click": ', b'"click": "x').replace(b', "seen"', b'", "seen"'),
        },
        "b.jsonl cannot be read as JSON lines",
    ),
    "no time": ({"a.jsonl": LINES[0] + b'{"id": 9}\n'}, "a.jsonl, row 1: time is missing"),
    "back in time": ({"a.jsonl": LINES[9] + LINES[0]}, "a.jsonl, row 1: time goes back in time"),
    "overlap": (
        {"b.jsonl": LINES[0] + LINES[9], "a.jsonl": LINES[5]},
        "a.jsonl begins before the end of .*b.jsonl: they overlap in time",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_a_log_is_told(case: str, tmp_path: Path) -> None:
    files, words = BROKEN[case]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        rows_of(source(tmp_path))


def test_the_example_runs(tmp_path: Path) -> None:
    smaller = [f"stream.source.path={LOG}"]
    experiment = exfm.load_experiment(str(EXAMPLE), [f"run_dir={tmp_path / 'run'}", *smaller])
    results = exfm.run(experiment)
    assert all(task["log_loss"] < 1 for model in results["models"].values() for task in model["tasks"].values())
