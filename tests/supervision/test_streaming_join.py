"""The streaming join returns the same rows as a dict of all rows, buffers few rows, and rejects damaged files."""

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
from exfm.supervision.embeddings import CompactEmbedding, EmbeddingFormat, EmbeddingShape
from exfm.supervision.joiner import SupervisionRows
from exfm.supervision.row_files import RowWriter, row_file, supervision_columns, supervision_schema
from exfm.supervision.streaming import SupervisionStream

TASKS = ("click", "buy")


def supervised(
    count: int, seed: int, form: EmbeddingFormat = "none", step: int = 3
) -> tuple[SupervisionRows, np.ndarray]:
    """Makes rows with shuffled ids, many equal times, and some missing probabilities."""
    random = np.random.default_rng(seed)
    times = 1_000_000 + np.cumsum(random.integers(0, step, count))
    values = {task: random.random(count).astype(np.float32) for task in TASKS}
    for column in values.values():
        column[random.random(count) < 0.2] = math.nan
    embedding = None
    if form != "none":
        embedding = CompactEmbedding.from_values(torch.from_numpy(random.normal(size=(count, 5))), form)
    rows = SupervisionRows(
        torch.from_numpy(random.permutation(count) * 11 - count),
        torch.from_numpy(times),
        {task: torch.from_numpy(column) for task, column in values.items()},
        torch.from_numpy(times - random.integers(0, 50, count)),
        embedding,
    )
    return rows, times


def store(workspace: Workspace, rows: SupervisionRows, group: int, form: EmbeddingFormat) -> FileRecord:
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
    count: int, seed: int, group: int, span: int, cuts: list[int], form: EmbeddingFormat, kept: float
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
    row_by_id = {int(id_): row for row, id_ in enumerate(written.example_id.tolist())}
    stream = SupervisionStream(workspace, store(workspace, written, group, form), span_rows=span)
    bounds = sorted({0, count, *(cut for cut in cuts if cut < count)})
    for start, stop in itertools.pairwise(bounds):
        chunk = slice(start, stop)
        chunk_index = stream.between(int(times[start]), int(times[stop - 1]))
        joined = chunk_index.join(rows.example_id[chunk], torch.from_numpy(times[chunk].copy()))
        row_numbers = [row_by_id.get(id_) for id_ in rows.example_id[chunk].tolist()]
        assert joined.has_row.tolist() == [row is not None for row in row_numbers]
        pairs = zip(times[chunk], row_numbers, strict=True)
        ages = [int(time) - int(written.watermark_us[row]) for time, row in pairs if row is not None]
        assert joined.age_us is not None
        assert joined.age_us.tolist() == ages
        assert joined.supervision.age_s is not None
        seconds = joined.supervision.age_s[joined.has_row].tolist()
        assert seconds == pytest.approx([max(age, 0) / 1e6 for age in ages], rel=1e-6)
        for task, values in written.probabilities.items():
            expected = [math.nan if row is None else float(values[row]) for row in row_numbers]
            hits = [not math.isnan(value) for value in expected]
            assert joined.supervision.hit[task].tolist() == hits
            joined_values = joined.supervision.probabilities[task]
            assert joined_values[hits].tolist() == [value for value in expected if not math.isnan(value)]
            assert joined_values.isfinite().all()
        if written.embedding is None:
            assert joined.supervision.embedding is None
            continue
        assert joined.supervision.embedding is not None
        decoded = written.embedding.decode()
        learned = torch.stack(list(joined.supervision.hit.values())).any(dim=0)
        for embedding, row, hit in zip(joined.supervision.embedding, row_numbers, learned, strict=True):
            assert torch.equal(embedding, decoded[row] if hit else torch.zeros(5))
    stream.close()


def test_few_rows_of_a_long_file_are_buffered(tmp_path: Path) -> None:
    rows, times = supervised(20_000, 0, step=4)
    workspace = Workspace(str(tmp_path))
    stream = SupervisionStream(workspace, store(workspace, rows, 500, "none"), span_rows=100)
    buffered = []
    for start in range(0, 20_000, 250):
        chunk = slice(start, start + 250)
        index = stream.between(int(times[start]), int(times[start + 249]))
        assert index.join(rows.example_id[chunk], torch.from_numpy(times[chunk].copy())).has_row.all()
        buffered.append(stream.buffered_rows)
    stream.close()
    assert max(buffered) <= 250 + 2 * 100 + 10  # the chunk, a span at either end, ties


def test_the_file_describes_its_columns(tmp_path: Path) -> None:
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
def test_embeddings_lose_little(form: EmbeddingFormat) -> None:
    embedding_SE = torch.randn(100, 16, generator=torch.Generator().manual_seed(0)) * 3
    embedding_SE[0] = 0
    decoded_SE = CompactEmbedding.from_values(embedding_SE, form).decode()
    largest_S = embedding_SE.abs().amax(dim=1, keepdim=True)
    # Half a step of float16's 10 bits of mantissa, or of int8's 127 steps.
    steps = {"float16": 2_000, "int8": 250}[form]
    assert ((decoded_SE - embedding_SE).abs() <= largest_S / steps).all()
    assert torch.equal(decoded_SE[0], torch.zeros(16))


def test_an_embedding_that_is_not_finite_stays_so_in_int8() -> None:
    decoded_SE = CompactEmbedding.from_values(torch.tensor([[1.0, math.nan], [1.0, 2.0]]), "int8").decode()
    assert not decoded_SE[0].isfinite().any()
    assert decoded_SE[1].isfinite().all()
