"""SIGKILL: a run killed again and again ends with the results of an undisturbed one."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import yaml

from .logs import differences, experiment_dict, make_log, write_log

KILLS = 4


def test_sigkill_at_random_moments_changes_no_result(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log())
    for name in ("whole", "killed"):
        config = experiment_dict(log, str(tmp_path / name))
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "exfm", "run"]
    subprocess.run([*command, str(tmp_path / "whole.yaml")], check=True, capture_output=True)
    commits = tmp_path / "killed" / "commits"
    moments = random.Random(0)
    for kill in range(KILLS):
        background = f"save_in_background={'true' if kill % 2 else 'false'}"
        process = subprocess.Popen([*command, str(tmp_path / "killed.yaml"), background], stdout=subprocess.DEVNULL)
        done = len(list(commits.rglob("*.json")))
        # wait for the run to get somewhere, then for a moment that nothing synchronises with
        while process.poll() is None and len(list(commits.rglob("*.json"))) == done:
            pass
        try:
            process.wait(timeout=moments.uniform(0, 0.3))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run([*command, str(tmp_path / "killed.yaml")], check=True, capture_output=True)
    whole, killed = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed"))
    assert differences(killed, whole) == []
