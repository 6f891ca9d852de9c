"""The join that follows the stream gives what a dict of all rows gives, holds few rows, and trusts no damaged file."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace
from exfm.supervision.embeddings import CompactEmbedding, EmbeddingShape
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import RowWriter, row_file, supervision_columns, supervision_schema
from exfm.supervision.streaming import SupervisionStream

TASKS = ("click", "buy")


def supervised(count: int, seed: int, form: str = "none", step: int = 3) -> tuple[SupervisionRows, np.ndarray]:
    """Rows with ids in no order and many equal times; some probabilities are missing."""
    random = np.random.default_rng(seed)
    times = 1_000_000 + np.cumsum(random.integers(0, step, count))
    values = {task: random.random(count).astype(np.float32) for task in TASKS}
    for column in values.values():
        column[random.random(count) < 0.2] = math.nan
    shape = None if form == "none" else torch.from_numpy(random.normal(size=(count, 5)))
    rows = SupervisionRows(
        torch.from_numpy(random.permutation(count) * 11 - count),
        torch.from_numpy(times),
        {task: torch.from_numpy(column) for task, column in values.items()},
        torch.from_numpy(times - random.integers(0, 50, count)),
        None if shape is None else CompactEmbedding.of(shape, form),
    )
    return rows, times


def store(workspace: Workspace, rows: SupervisionRows, group: int, form: str) -> FileRecord:
    shape = None if form == "none" else EmbeddingShape(form, 5)
    count = rows.example_id.numel()
    writer = RowWriter(workspace, row_file("supervision", "fm", 0), supervision_schema(TASKS, "fm", shape))
    for start in range(0, count, group):
        stop = min(start + group, count)
        writer.append(supervision_columns(rows.slice(start, stop), 0, 0))
    return writer.close()


@given(
    count=st.integers(0, 80),
    seed=st.integers(0, 1_000),
    group=st.integers(1, 30),
    span=st.integers(1, 30),
    cuts=st.lists(st.integers(0, 120), max_size=8),
    form=st.sampled_from(["none", "float16", "int8"]),
    kept=st.floats(0.0, 1.0),
)
def test_any_chunking_joins_like_a_dict(
    count: int, seed: int, group: int, span: int, cuts: list[int], form: str, kept: float
) -> None:
    rows, times = supervised(count, seed, form)
    workspace = Workspace(f"memory://streaming-{seed}-{count}")
    stored = np.random.default_rng(seed + 1).random(count) < kept
    index = torch.from_numpy(np.flatnonzero(stored))
    written = SupervisionRows(
        rows.example_id[index],
        rows.event_time_us[index],
        {task: values[index] for task, values in rows.probabilities.items()},
        rows.watermark_us[index],
        None if rows.embedding is None else rows.embedding.take(index),
    )
    expected = {int(id_): place for place, id_ in enumerate(written.example_id.tolist())}
    stream = SupervisionStream(workspace, store(workspace, written, group, form), span_rows=span)
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    for start, stop in itertools.pairwise(bounds):
        part = slice(start, stop)
        found_index = stream.between(int(times[start]), int(times[stop - 1]))
        joined = found_index.join(rows.example_id[part], torch.from_numpy(times[part].copy()))
        places = [expected.get(id_) for id_ in rows.example_id[part].tolist()]
        assert joined.found.tolist() == [place is not None for place in places]
        ages = [
            int(time) - int(written.watermark_us[place])
            for time, place in zip(times[part], places, strict=True)
            if place is not None
        ]
        assert joined.age_us is not None
        assert joined.age_us.tolist() == ages
        for task, values in written.probabilities.items():
            known = [place is not None and not math.isnan(values[place]) for place in places]
            assert joined.supervision.hit[task].tolist() == known
            got = joined.supervision.probabilities[task]
            assert [float(v) for v, hit in zip(got, known, strict=True) if hit] == [
                float(values[place]) for place, hit in zip(places, known, strict=True) if hit
            ]
            assert got.isfinite().all()
        if written.embedding is None:
            assert joined.supervision.embedding is None
            continue
        assert joined.supervision.embedding is not None
        decoded = written.embedding.decode()
        learned = torch.stack(list(joined.supervision.hit.values())).any(dim=0)
        for row, place, hit in zip(joined.supervision.embedding, places, learned, strict=True):
            assert torch.equal(row, decoded[place] if hit else torch.zeros(5))
    stream.close()


def test_a_long_file_is_held_a_few_rows_at_a_time(tmp_path: Path) -> None:
    rows, times = supervised(20_000, 0, step=4)
    workspace = Workspace(str(tmp_path))
    stream = SupervisionStream(workspace, store(workspace, rows, 500, "none"), span_rows=100)
    held = []
    for start in range(0, 20_000, 250):
        part = slice(start, start + 250)
        index = stream.between(int(times[start]), int(times[start + 249]))
        assert index.join(rows.example_id[part], torch.from_numpy(times[part].copy())).found.all()
        held.append(stream.rows_held)
    stream.close()
    assert max(held) <= 250 + 2 * 100 + 10  # the chunk, a span at either end, ties


def test_the_file_says_what_its_numbers_are(tmp_path: Path) -> None:
    rows, _ = supervised(10, 0)
    workspace = Workspace(str(tmp_path))
    record = store(workspace, rows, 4, "none")
    metadata = pq.ParquetFile(tmp_path / record.path).schema_arrow.metadata
    assert metadata == {b"exfm.teacher": b"fm", b"exfm.kind.click": b"probability", b"exfm.kind.buy": b"probability"}


@pytest.mark.parametrize("url", ["disk", "memory://damaged"])
def test_a_damaged_file_is_named_before_a_row_is_used(tmp_path: Path, url: str) -> None:
    rows, _ = supervised(200, 0)
    workspace = Workspace(str(tmp_path) if url == "disk" else url)
    record = store(workspace, rows, 50, "none")
    data = bytearray(workspace.read(record.path))
    data[len(data) // 2] ^= 1
    workspace.fs.pipe_file(workspace.path(record.path), bytes(data))
    with pytest.raises(exfm.RunError, match=r"supervision/fm/window-000000-.*\.parquet: corrupt"):
        SupervisionStream(workspace, record)
    workspace.fs.rm(workspace.path(record.path))
    with pytest.raises(exfm.RunError, match="a committed file is missing"):
        SupervisionStream(workspace, record)


@pytest.mark.parametrize("form", ["float16", "int8"])
def test_embeddings_lose_little(form: str) -> None:
    embedding_SE = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)) * 3
    embedding_SE[0] = 0
    decoded_SE = CompactEmbedding.of(embedding_SE, form).decode()
    largest_S = embedding_SE.abs().amax(dim=1, keepdim=True)
    assert ((decoded_SE - embedding_SE).abs() <= largest_S / (2_000 if form == "float16" else 250)).all()
    assert torch.equal(decoded_SE[0], torch.zeros(16))


def test_an_embedding_that_is_not_finite_stays_so_in_int8() -> None:
    decoded_SE = CompactEmbedding.of(torch.tensor([[1.0, math.nan], [1.0, 2.0]]), "int8").decode()
    assert not decoded_SE[0].isfinite().any()
    assert decoded_SE[1].isfinite().all()
