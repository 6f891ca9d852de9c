"""Reads a log in each process of a job, then trains on another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import exfm
from exfm.parallel import TorchProcessGroup
from exfm_plugins.sources.parquet.source import Parquet
from tests.training import parallel_worker

FIELDS = {
    "features": [{"name": "item", "kind": "categorical", "rows": 64}, {"name": "text", "kind": "vector", "width": 250}],
    "labels": [{"name": "click"}],
}


def bytes_read(path: str, shard: exfm.sources.Shard) -> int:
    """Reads a shard of a log, and returns how many bytes of files the process has read for that."""
    source = Parquet(Parquet.Config.model_validate(FIELDS | {"path": path}))
    span = source.time_range()
    before = 0
    for _ in range(2):  # in the first pass, modules are read too
        before = file_bytes()
        for _ in source.read(exfm.sources.Window(0, span.start_us, span.end_us), shard):
            pass
    return file_bytes() - before


def file_bytes() -> int:
    return int(Path("/proc/self/io").read_text(encoding="utf-8").split()[1])


def buffers_of(sender: int, processes: int) -> list[bytes]:
    """Buffers of many lengths, also empty, that name their sender and their receiver."""
    return [f"{sender}{receiver}".encode() * (sender * receiver * 7 % 5) for receiver in range(processes)]


def main(log: str, out: Path, jobs: list[dict[str, Any]]) -> None:
    group = TorchProcessGroup(torch.device("cpu"))
    rank, processes = group.rank, group.world_size
    for sent in (buffers_of(rank, processes), [b""] * processes):
        received = [buffer.tobytes() for buffer in group.all_to_all_bytes(sent)]
        assert received == [(buffers_of(sender, processes) if any(sent) else sent)[rank] for sender in range(processes)]
        # The collective of any group does the same.
        assert received == [buffer.tobytes() for buffer in super(TorchProcessGroup, group).all_to_all_bytes(sent)]
    read = bytes_read(log, exfm.sources.Shard(rank, processes))
    (out / f"bytes-{rank}").write_text(json.dumps(read), encoding="utf-8")
    dist.barrier()
    parallel_worker.main(jobs, out / "marker")
