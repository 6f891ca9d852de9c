"""Measures how much each process of a job reads of a Parquet log, sends to others and computes to have tensors.

The log has eight files of eight row groups. Bytes read are those of the log alone, by /proc/self/io, in a pass in which
nothing else is read; they are there whether or not the system has the file in memory. Processor seconds are of all of a
process's threads, in a pass in which rows are read, checked, exchanged, sorted and decoded, as a job does.

    python benchmarks/reading_in_processes.py --processes 1 2 4 --rows 200000
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from exfm.config.experiment import StreamConfig
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import read_sharded
from exfm.interfaces.data_source import Window
from exfm.parallel import TorchProcessGroup
from exfm.sources import Shard
from exfm.testing.torchrun import launch
from exfm_plugins.sources.parquet.source import Parquet

FILES, GROUPS = 8, 8
VECTOR = 200
"""Numbers in the vector of a row of the wide log, which takes about 1 kB."""


def write_log(folder: Path, rows: int, ids: int, vector: int) -> None:
    """Writes consecutive rows to each file."""
    random = np.random.default_rng(0)
    time_us = np.sort(random.integers(0, 86_400_000_000, rows))
    for number, index in enumerate(np.array_split(np.arange(rows), FILES)):
        columns: dict[str, Any] = {
            "example_id": index,
            "event_time": pa.array(time_us[index], pa.timestamp("us")),
            "click": random.integers(0, 2, index.size).astype(np.int8),
        }
        columns |= {f"id_{column}": random.integers(0, 100_000, index.size) for column in range(ids)}
        if vector:
            values = pa.array(random.normal(size=index.size * vector).astype(np.float32))
            columns["vector"] = pa.FixedSizeListArray.from_arrays(values, vector)
        size = -(-index.size // GROUPS)
        pq.write_table(pa.table(columns), folder / f"part-{number}.parquet", row_group_size=size)


class WholeParquet(Parquet):
    """A log that every process reads whole."""

    splits = False


def open_log(folder: Path, ids: int, vector: int, splits: bool) -> Parquet:
    """Opens the log, as it is or so that every process reads everything."""
    features: list[dict[str, Any]] = [{"name": f"id_{c}", "kind": "categorical", "rows": 65_536} for c in range(ids)]
    if vector:
        features.append({"name": "vector", "kind": "vector", "width": vector})
    fields = {"path": str(folder), "features": features, "labels": [{"name": "click"}]}
    log = Parquet if splits else WholeParquet
    return log(log.Config.model_validate(fields))


class CountingGroup(TorchProcessGroup):
    """Counts the bytes of rows that this process sends to others."""

    sent = 0

    def all_to_all_bytes(self, buffers: Sequence[bytes | memoryview]) -> list[memoryview]:
        """Sends a buffer to every process."""
        self.sent += sum(map(len, buffers)) - len(buffers[self.rank])
        return super().all_to_all_bytes(buffers)


def bytes_read() -> int:
    """Returns the number of bytes that this process has read, from files and not from sockets."""
    return int(Path("/proc/self/io").read_text().split()[1])


def measure(folder: Path, out: Path, splits: bool, ids: int, vector: int) -> None:
    """Reads the log, in each process."""
    if "WORLD_SIZE" not in os.environ:
        os.environ["WORLD_SIZE"] = "1"
    group = CountingGroup(torch.device("cpu"))
    source, shard = open_log(folder, ids, vector, splits), Shard(group.rank, group.world_size)
    span = source.time_range()
    window = Window(0, span.start_us, span.end_us)
    before = bytes_read()
    for _ in source.read(window, shard if splits else Shard()):
        pass
    read = bytes_read() - before
    stream = StreamConfig.model_construct(chunk_rows=16_384, on_bad_row="error", max_skipped_share=0.4)  # type: ignore[call-arg]
    for _ in range(2):  # the first pass warms up
        reader = ChunkReader(source, source.schema(), stream, {}, shard, group)
        group.barrier()
        group.sent, start = 0, time.process_time()
        rows = sum(chunk.batch.size for chunk in read_sharded(reader, window, group))
        seconds = time.process_time() - start
    figures = group.all_gather(torch.tensor([float(rows), read, group.sent, seconds], dtype=torch.float64))
    if group.is_rank_zero:
        np.save(out, figures.numpy())
    group.barrier()


def main() -> None:
    """Prints a row for each number of processes: the most of any process, and its share of a single process's."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    print("| log | processes | who reads | MB read | share | MB sent | processor s | share |")
    print("|---" * 8 + "|")
    for log, ids, vector in (("1 kB a row", 30, VECTOR), ("narrow", 8, 0)):
        with tempfile.TemporaryDirectory() as name:
            folder, out = Path(name, "log"), Path(name, "figures.npy")
            folder.mkdir()
            write_log(folder, options.rows, ids, vector)
            single: np.ndarray | None = None
            for processes in options.processes:
                for splits in (True, False) if processes > 1 else (True,):
                    launch(measure, folder, out, splits, ids, vector, processes=processes)
                    figures = np.load(out)
                    assert figures[:, 0].sum() == options.rows
                    most = figures.max(axis=0)
                    single = most if single is None else single
                    share = most / single
                    print(
                        f"| {log} | {processes} | {'a share each' if splits else 'everything each'} | "
                        f"{most[1] / 1e6:.1f} | {share[1]:.3f} | {most[2] / 1e6:.1f} | {most[3]:.2f} | {share[3]:.2f} |"
                    )


if __name__ == "__main__":
    main()
