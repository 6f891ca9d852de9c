"""Training in bfloat16 on two threads repeats to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.training.logs import experiment_dict, load, make_log, train, write_log


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("recomputed", [False, True])
def test_two_runs_are_equal(tmp_path: Path, two_threads: None, recomputed: bool) -> None:
    """Batches of 2,500 examples are two shares of three pieces each."""
    log = write_log(tmp_path / "log", make_log(rows=5_000))
    files = []
    for name in ("first", "second"):
        run_dir = tmp_path / name
        config = experiment_dict(log, str(run_dir))
        config["stream"] |= {"window": "7d", "chunk_rows": 2_500}
        fm = {"backbone": {"name": "dcn_v2"}, "precision": "bf16", "embedding_dim": 8, "batch_size": 2_500}
        config["models"] = {"fm": fm | {"activation_checkpointing": recomputed}}
        train(load(tmp_path, config))
        kept = [*(run_dir / "predictions").rglob("*.parquet"), *(run_dir / "snapshots").rglob("*.safetensors")]
        files.append(sorted(path.relative_to(run_dir).as_posix() for path in kept))
    assert len(files[0]) == 6  # two windows: of each predictions, and a snapshot of two files
    assert files[0] == files[1]  # a name holds its content's checksum
