"""`--follow`: a job waits for a folder and for files that are still being written, and any other job names them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import exfm
from exfm.cli import jobs
from exfm.supervision.store import Store
from exfm.training.loop import StreamLoop
from exfm_plugins.sources.parquet import files
from exfm_plugins.sources.parquet.source import Parquet
from tests.training.logs import experiment_dict, make_log, write_log


def loop(folder: Path) -> StreamLoop:
    config = experiment_dict(str(folder / "data"), str(folder / "run"))
    (folder / "follow.yaml").write_text(yaml.safe_dump(config))
    experiment = exfm.load_experiment(str(folder / "follow.yaml"))
    return StreamLoop(
        experiment, Store(experiment.run_dir), experiment.config.parallel.build(), lambda _: None, ("fm",)
    )


@pytest.fixture
def written(tmp_path: Path) -> list[tuple[str, bytes]]:
    """Names and contents of the files of a log."""
    folder = Path(write_log(tmp_path / "whole", make_log(300)))
    return [(file.name, file.read_bytes()) for file in sorted(folder.iterdir())]


def test_a_follower_waits_for_the_folder_and_for_half_a_file(
    tmp_path: Path, written: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(jobs, "POLL_S", 0.02)
    data = tmp_path / "data"
    (first, content), (second, late), (third, end) = written

    def steps() -> Iterator[None]:
        """Writes the log step by step, each after the follower has read or refused the files of the step before."""
        yield
        data.mkdir()
        yield
        (data / first).write_bytes(content[:1000])
        yield
        (data / first).write_bytes(content)
        (data / second).write_bytes(late[:-8])
        yield
        (data / second).write_bytes(late)
        (data / third).write_bytes(end)

    writer = steps()
    looks: list[str] = []
    look = Parquet.time_range

    def time_range(self: Any) -> exfm.sources.TimeRange:
        try:
            return look(self)
        except exfm.components.NotYetError as error:
            looks.append(str(error))
            raise
        finally:
            next(writer, None)

    monkeypatch.setattr(Parquet, "time_range", time_range)
    done = jobs._advance(loop(tmp_path), jobs.Follow(True, 0.3, False))
    assert done == 6
    for words in ("no file or folder", "holds no Parquet file"):
        assert any(words in look for look in looks)
    assert any(f"{first} cannot be read" in look for look in looks)
    assert any(f"{second} cannot be read" in look for look in looks)
    said = [record.getMessage() for record in caplog.records if record.name == jobs.__name__]
    assert said == [f"waiting: stream.source: {look}" for look in dict.fromkeys(looks)]


def test_missing_data_are_an_error_of_any_other_job(
    tmp_path: Path, written: list[tuple[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    never = jobs.Follow(False, None, False)
    with pytest.raises(exfm.ConfigError, match="there is no file or folder"):
        jobs._advance(loop(tmp_path), never)
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.parquet").write_bytes(written[0][1][:-8])
    with pytest.raises(exfm.ConfigError, match=r"a\.parquet cannot be read as Parquet"):
        jobs._advance(loop(tmp_path), never)
    with pytest.raises(exfm.components.NotYetError, match=r"a\.parquet cannot be read as Parquet"):
        jobs._advance(loop(tmp_path), jobs.Follow(True, 0.0, False))
    monkeypatch.setattr(files, "PATIENCE_S", 0.0)
    with pytest.raises(
        exfm.ConfigError, match=r"a\.parquet cannot be read .* it has not grown for 0 seconds"
    ) as damaged:
        jobs._advance(loop(tmp_path), jobs.Follow(True, None, False))
    assert not isinstance(damaged.value, exfm.components.NotYetError)
