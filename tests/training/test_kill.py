"""SIGKILL: a run killed again and again ends with the results of an undisturbed run."""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

import yaml

import exfm
from tests.processes import start_exfm
from tests.training.logs import differences, experiment_dict, load, make_log, write_log

KILLS = 2


def test_sigkill_at_random_moments_changes_no_result(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log())
    whole = exfm.run(load(tmp_path, experiment_dict(log, str(tmp_path / "whole"))))
    file = tmp_path / "killed.yaml"
    file.write_text(yaml.safe_dump(experiment_dict(log, str(tmp_path / "killed"))))
    commits = tmp_path / "killed" / "commits"
    moments = random.Random(0)
    for kill in range(KILLS):
        background = f"save_in_background={'true' if kill % 2 else 'false'}"
        process = start_exfm("run", str(file), background)
        done = len(list(commits.rglob("*.json")))
        # wait for the run to get somewhere, then for a moment that nothing synchronises with
        while process.is_alive() and len(list(commits.rglob("*.json"))) == done:
            time.sleep(0.01)
        process.join(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert differences(exfm.run(exfm.load_experiment(str(file))), whole) == []
