"""A fleet of jobs ends as a single process does, and a student that is added touches no other job."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

import exfm
from exfm.experiment.run import run
from exfm.launch import Fleet, Job, LauncherConfig, RunningJob, keeper
from exfm.launch.graph import Commands
from exfm.launch.groups import pack, savings
from exfm.launch.keeper import Keeper
from exfm.launch.prepare import load_with_launcher, prepare_fleet
from tests.processes import start_exfm
from tests.training.logs import experiment_dict, make_log, timeless, write_log


class ForkedJob(RunningJob):
    def __init__(self, process: BaseProcess) -> None:
        self.process = process

    @property
    def location(self) -> str:
        return "a fork"

    def poll(self) -> int | None:
        return self.process.exitcode

    def stop(self) -> None:
        self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


class Forks(exfm.Launcher):
    """Forks of a process that has imported torch, which start sooner than processes of `local`."""

    name: ClassVar[str] = "forks"
    Config = LauncherConfig
    kills: ClassVar[list[str]] = []
    started: ClassVar[list[str]] = []

    def open(self, fleet: Fleet) -> None:
        self.log_dir = Path(fleet.log_dir)

    def start(self, job: Job) -> RunningJob:
        said = self.log_dir / job.name
        said.mkdir(exist_ok=True)
        self.started.append(job.name)
        running = ForkedJob(start_exfm(*job.command[1:], said=said))
        if job.name in self.kills:
            self.kills.remove(job.name)
            running.process.join(0.5)
            running.process.kill()
        return running


def config(folder: Path) -> dict[str, Any]:
    """An FM that labels a day later, and three students of two traffics."""
    data = str(folder / "data")
    tree = experiment_dict(data, str(folder / "run"))
    tree["models"]["fm"].update(backbone={"name": "mlp"}, sequence_encoder=None, supervision={"delay": "1d"})
    student = tree["models"].pop("vm")
    tree["models"] |= {
        "a": student,
        "b": {**student, "control": False, "batch_size": 32},
        "c": {**student, "features": ["item"], "where": {"user": {"bucket": 0, "of": 2}}},
    }
    return tree


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    write_log(folder / "data", make_log(150))
    tree = config(folder)
    del tree["models"]["c"]
    (folder / "fleet.yaml").write_text(yaml.safe_dump(tree))
    return folder


def files(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.read_bytes()


def bring_up(folder: Path, but_for: Collection[str] = ()) -> list[str]:
    """Does all that is there by `forks`, but for some jobs; returns the jobs in the order of their starts."""
    commands = Commands(str(folder / "fleet.yaml"), (), (), "done")
    experiment, _ = load_with_launcher(commands, None)
    launcher = Forks(Forks.Config())
    fleet, _ = prepare_fleet(experiment, launcher, commands, keep=True)
    jobs = tuple(replace(job, waits_for=()) for job in fleet.jobs if job.name not in but_for)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keeper, "_POLL_S", 0.02)
        Forks.started.clear()
        failed = Keeper(launcher, replace(fleet, jobs=jobs) if but_for else fleet, 3, lambda _: None).run()
    assert not failed
    return list(Forks.started)


def test_jobs_that_are_killed_end_as_one_process_and_a_new_student_touches_no_other(folder: Path) -> None:
    Forks.kills[:] = ["train-a-and-1-more"]
    started = bring_up(folder)
    assert started == ["train-fm", "supervise-fm", "train-a-and-1-more", "train-a-and-1-more", "report"]
    whole = run(exfm.load_experiment(str(folder / "fleet.yaml"), [f"run_dir={folder / 'whole'}"]))
    assert timeless(json.loads((folder / "run" / "results.json").read_text())) == timeless(whole)
    kept = ("predictions", "snapshots", "supervision", "commits", "models")
    before = {name: dict(files(folder / "run" / name)) for name in kept}
    tree = yaml.safe_load((folder / "fleet.yaml").read_text())
    tree["models"] = {"a0": tree["models"]["b"], **tree["models"]}
    (folder / "fleet.yaml").write_text(yaml.safe_dump(tree))
    # The others keep their names and their models, although the new model is their like and their group has room.
    assert bring_up(folder, {*started}) == ["train-a0"]
    for name in kept:
        after = dict(files(folder / "run" / name))
        assert before[name].items() <= after.items()
        added = after.keys() - before[name].keys()
        assert all("a0" in path for path in added) and (added or name == "supervision")


def graph(folder: Path, *overrides: str, until_done: bool = False) -> dict[str, Job]:
    commands = Commands(str(folder / "fleet.yaml"), overrides, (), "done" if until_done else "never")
    experiment, launcher = load_with_launcher(commands, None)
    fleet, _ = prepare_fleet(experiment, launcher, commands, keep=False)
    return {job.name: job for job in fleet.jobs}


def test_a_job_reads_what_another_writes(tmp_path: Path) -> None:
    write_log(tmp_path / "data", make_log(60))
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(config(tmp_path)))
    jobs = graph(tmp_path, "launcher.name=local", "launcher.models.fm.cores=4", "launcher.models.fm.memory_gib=2")
    assert list(jobs) == ["train-fm", "supervise-fm", "train-a-and-1-more", "train-c"]
    assert jobs["train-a-and-1-more"].models == ("a", "b")
    assert [job.waits_for for job in jobs.values()] == [(), ("train-fm",), ("supervise-fm",), ("supervise-fm",)]
    assert jobs["supervise-fm"].reads == ("stream", "snapshots/fm")
    assert "predictions/a.control" in jobs["train-a-and-1-more"].writes
    assert not any("launcher" in word for word in jobs["train-fm"].command)
    assert jobs["train-fm"].command[-3:] == ("--model", "fm", "--follow")
    assert (jobs["train-fm"].cores, jobs["train-fm"].memory_bytes) == (4, 2 << 30)
    done = graph(tmp_path, until_done=True)
    assert done["report"].waits_for == tuple(jobs) and not done["train-c"].follows
    assert done["train-c"].command[-1] == "--final"
    # Without a delay the FM labels while it trains, and a model that learns from a student waits for its job.
    chain = graph(tmp_path, "models.fm.supervision.delay=0s", "models.c.transfer=[{name: auxiliary_head, teacher: b}]")
    assert list(chain) == ["train-fm", "train-a", "train-b", "train-c"]
    assert chain["train-c"].waits_for == ("train-b",)
    with pytest.raises(exfm.ConfigError, match=r"launcher\.models: no model is called 'fn'.* Allowed: a, b, c, fm"):
        graph(tmp_path, "launcher.name=local", "launcher.models.fn.cores=4")


def test_groups_have_a_size_and_stay_as_they_are(tmp_path: Path) -> None:
    write_log(tmp_path / "data", make_log(60))
    tree = config(tmp_path)
    student = tree["models"].pop("b")
    tree["models"] |= {f"s{number}": student for number in range(8)}
    (tmp_path / "fleet.yaml").write_text(yaml.safe_dump(tree))
    experiment = exfm.load_experiment(str(tmp_path / "fleet.yaml"))
    groups = pack(experiment, {}, 4)
    sizes = [sum(arm.base in group.models for arm in experiment.arms) for group in groups]
    assert max(sizes) <= 4 and sum(sizes) == len(experiment.arms)
    assert len({group.name for group in groups}) == len(groups)
    kept = {"train-s5-and-1-more": ["s5", "s1"], "train-gone": ["gone"]}
    again = pack(experiment, kept, 64)
    by_name = {group.name: group.models for group in again}
    assert by_name["train-s5-and-1-more"] == ("s5", "s1") and "train-gone" not in by_name
    assert by_name["train-a-and-6-more"] == ("a", "s0", "s2", "s3", "s4", "s6", "s7")
    # Ids, time, user, item and a label, by a job of seven models and a job of two.
    saved = savings(experiment, again)
    assert (saved.models, saved.jobs, saved.columns, saved.columns_apart) == (9, 2, 10, 45)
