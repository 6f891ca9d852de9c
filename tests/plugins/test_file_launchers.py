"""Launchers that write files: each passes its engine's parser or schema, and carries commands and order unchanged."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import exfm_plugins.launchers
from exfm.launch import Fleet
from exfm.testing import LauncherTests
from exfm_plugins.launchers.airflow.launcher import Airflow
from exfm_plugins.launchers.kubernetes.launcher import Kubernetes
from exfm_plugins.launchers.skypilot.launcher import Skypilot
from exfm_plugins.launchers.slurm.launcher import Slurm


class TestSlurm(LauncherTests):
    component = Slurm
    plugin = exfm_plugins.launchers
    configs = ({}, {"partition": "cpu,gpu", "account": "ads", "time": "1-00:00:00"})

    def test_scripts_run_the_commands_in_order(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        fleet = self.fleet(tmp_path)
        scripts = write(self.make(fields).files(fleet), tmp_path / "files")
        for script in scripts.values():
            subprocess.run(["bash", "-n", str(script)], check=True)
        # Instead of Slurm, a program that prints ids as `sbatch --parsable` does, with the cluster's name.
        called = tmp_path / "called"
        program(tmp_path / "bin" / "sbatch", f'echo "$@" >> {called}; echo "$(wc -l < {called});cluster"')
        program(tmp_path / "bin" / "exfm", 'printf "%s\\n" "$@"; echo "$OMP_NUM_THREADS"')
        environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(scripts["submit.sh"])], check=True, env=environment, stdout=subprocess.DEVNULL)
        submitted = [shlex.split(line) for line in called.read_text().splitlines()]
        assert [Path(words[-1]).stem for words in submitted] == [job.name for job in fleet.jobs]
        ids = {job.name: str(number) for number, job in enumerate(fleet.jobs, 1)}
        for job, words in zip(fleet.jobs, submitted, strict=True):
            after = [word for word in words if word.startswith("--dependency")]
            expected = [":".join(["--dependency=afterok", *(ids[name] for name in job.waits_for)])]
            assert after == (expected if job.waits_for else [])
            run = ["bash", str(scripts[f"{job.name}.sbatch"])]
            done = subprocess.run(run, check=True, env=environment, capture_output=True, text=True)
            assert done.stdout.splitlines() == [*job.command[1:], str(job.threads)]

    def test_each_option_is_one_of_sbatch(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        options = {
            "job-name": r"[\w-]+", "output": r"(\\ |\S)+", "open-mode": "append|truncate", "nodes": r"\d+",
            "ntasks": r"\d+", "cpus-per-task": r"\d+", "mem": r"\d+[KMGT]", "requeue": "", "signal": r"B:TERM@\d+",
            "partition": r"[\w,]+", "account": r"\w+", "time": r"(\d+-)?\d+:\d+:\d+",
        }  # fmt: skip
        for name, text in self.make(fields).files(self.fleet(tmp_path)).items():
            lines = [line for line in text.splitlines() if line.startswith("#SBATCH")]
            assert bool(lines) == name.endswith(".sbatch")
            for line in lines:
                option, _, value = line.removeprefix("#SBATCH --").partition("=")
                assert re.fullmatch(options[option], value), line
            assert text.startswith("#!/bin/bash\n")


class TestKubernetes(LauncherTests):
    component = Kubernetes
    plugin = exfm_plugins.launchers
    configs = ({}, {"image": "a.example/exfm:1", "namespace": "ads", "queue": "cpu", "claim": "runs"})

    def test_jobs_pass_the_schema(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        fleet = self.fleet(tmp_path)
        files = self.make(fields).files(fleet)
        names = set()
        for job in fleet.jobs:
            resource = yaml.safe_load(files[f"{job.name}.yaml"])
            kubernetes_validate.validate(resource, "1.31", strict=True)
            metadata, spec = resource["metadata"], resource["spec"]
            assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", metadata["name"]) and len(metadata["name"]) <= 63
            names.add(metadata["name"])
            (container,) = spec["template"]["spec"]["containers"]
            assert tuple(container["command"]) == job.command
            assert container["resources"]["requests"] == {
                "cpu": f"{job.cores:g}",
                "memory": f"{job.memory_bytes >> 20}Mi",
            }
            assert ("kueue.x-k8s.io/queue-name" in metadata["labels"]) == spec.get("suspend", False) == bool(fields)
        assert len(names) == len(fleet.jobs)


class TestAirflow(LauncherTests):
    component = Airflow
    plugin = exfm_plugins.launchers
    configs = ({}, {"schedule": "0 * * * *", "folder": "/srv/it's", "pool": "exfm"})

    def test_the_dag_has_commands_and_order(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        fleet = self.fleet(tmp_path)
        (text,) = self.make(fields).files(fleet).values()
        tables = {}
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                tables[node.targets[0].id] = ast.literal_eval(node.value)
        assert tables["COMMANDS"] == {job.name: list(job.command) for job in fleet.jobs}
        assert tables["WAITS_FOR"] == {job.name: list(job.waits_for) for job in fleet.jobs}
        compile(text, "dag.py", "exec")

    def test_airflow_loads_it(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        models = pytest.importorskip("airflow.models", reason="airflow is not installed")
        fleet = self.fleet(tmp_path)
        write(self.make(fields).files(fleet), tmp_path / "dags")
        bag = models.DagBag(str(tmp_path / "dags"), include_examples=False)
        assert not bag.import_errors
        (dag,) = bag.dags.values()
        for job in fleet.jobs:
            assert dag.task_dict[job.name].upstream_task_ids == set(job.waits_for)


class TestSkypilot(LauncherTests):
    component = Skypilot
    plugin = exfm_plugins.launchers
    configs = ({}, {"infra": "aws/us-east-1", "spot": True, "setup": "pip install 'exfm[cpu]'", "workdir": "a: b"})

    def test_tasks_have_keys_of_skypilot(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        fleet = self.fleet(tmp_path)
        files = self.make(fields).files(fleet)
        for job in fleet.jobs:
            task = yaml.safe_load(files[f"{job.name}.yaml"])
            assert task.keys() <= {"name", "workdir", "resources", "envs", "setup", "run"}
            assert task["resources"].keys() <= {"cpus", "memory", "infra", "use_spot", "job_recovery"}
            assert task["resources"]["job_recovery"] == {"max_restarts_on_errors": 10}
            assert tuple(shlex.split(task["run"])) == ("exec", *job.command)
            assert all(isinstance(value, str) for value in task["envs"].values())

    def test_skypilot_loads_them(self, fields: Mapping[str, Any], tmp_path: Path) -> None:
        sky = pytest.importorskip("sky", reason="skypilot is not installed")
        for path in write(
            self.make({**fields, "workdir": str(tmp_path)}).files(self.fleet(tmp_path)), tmp_path
        ).values():
            sky.Task.from_yaml(str(path))


def write(files: Mapping[str, str], folder: Path) -> dict[str, Path]:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return {name: folder / name for name in files}


def program(path: Path, body: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def test_equal_labels_are_told_apart(tmp_path: Path) -> None:
    kit = TestKubernetes()
    fleet = kit.fleet(tmp_path)
    names = ("train-a_b", "train-A-b", "train-" + 60 * "x", "train-" + 61 * "x")
    jobs = tuple(type(fleet.jobs[0])(name, ("exfm", "train")) for name in names)
    files = kit.make({}).files(Fleet("ads", "", "", jobs))
    labels = [yaml.safe_load(text)["metadata"]["name"] for text in files.values()]
    assert len(set(labels)) == len(jobs) and all(len(label) <= 63 for label in labels)
