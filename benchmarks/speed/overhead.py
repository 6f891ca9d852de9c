"""The cost of transfer and sharing: `python benchmarks/speed/overhead.py`.

A run trains, on the same chunks in turn: a teacher and the same model without students, which differ by the writing of
supervision; and students with the whole transfer stack, each beside its control: a student of three features in batches
of several sizes, and a student of all features in large ones. Their seconds are those that the manifests record, and
the figure is the median, over all windows but the first, of the ratio within a window: one window's speed is not
another's. Then a student alone is trained, and ten in a process, in three turns: reading, training and commits
together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

import exfm
from exfm.supervision.store import Store

STUDENTS = 10
TURNS = 3
STACK_GOAL, SUPERVISION_GOAL, STUDENTS_GOAL = 1.15, 1.05, 7.0
SMALL_BATCHES = (128, 512, 2048)
Models = dict[str, dict[str, Any]]

STUDENT = {
    "backbone": {"name": "dlrm"},
    "features": ["user_id", "ad_id", "surface"],
    "where": {"user_id": {"bucket": 0, "of": 5}},
    "tasks": ["click"],
    "batch_size": 128,
}
LARGE = {"backbone": {"name": "dcn_v2"}, "tasks": ["click"], "batch_size": 4096}
TEACHER = {"backbone": {"name": "wukong"}, "tasks": ["click"]}
STORED = {"states": {"user_id": ["user_id", "country"], "ad_id": ["ad_id", "advertiser"]}}
SHARED = {"table/user_id": "added", "table/ad_id": "added"}
DOMAIN = {
    "backbone": {"name": "dlrm"},
    "features": STUDENT["features"],
    "tasks": ["click"],
    "transfer": [{"name": "direct", "teacher": "fm"}],
    "supervision": {"rows": ["user_id", "ad_id"]},
}
STACK = [
    {"name": "auxiliary_head", "teacher": "fm"},
    {"name": "compact_features", "teacher": "fm"},
    {"name": "parameter_sharing", "teacher": "domain", "parts": SHARED},
]


def seconds(models: Models, rows_per_day: int, days: int) -> tuple[dict[str, list[float]], float]:
    """Runs the models on a simulated stream: seconds of each window but the first by model, and of the whole run."""
    with tempfile.TemporaryDirectory(prefix="exfm-overhead-") as folder:
        source = {"name": "synthetic_ads", "days": days, "rows_per_day": rows_per_day}
        config = {
            "name": "overhead",
            "run_dir": f"{folder}/run",
            "stream": {"source": source, "window": "1d"},
            "models": models,
            "parallel": {"name": "single", "device": "cpu"},
            "evaluation": {"replicates": 100},
        }
        path = Path(folder) / "overhead.yaml"
        path.write_text(yaml.safe_dump(config))
        experiment = exfm.load_experiment(str(path))
        spent = exfm.run(experiment)["time"]
        log = Store(experiment.run_dir).log
        arms = [arm.name for arm in experiment.arms]
        windows = {name: [one.counters["seconds"] for one in log.commits("train", name)[1:]] for name in arms}
    whole = sum(spent[part] for part in ("data_s", "train_s", "supervise_s", "commit_s"))
    return windows, whole


def ratio(windows: dict[str, list[float]], model: str, other: str) -> float:
    """How many times the other's time a model takes in the median window."""
    return median(one / two for one, two in zip(windows[model], windows[other], strict=True))


def main() -> None:
    """Exit status 1 when a ratio is above its goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows-per-day", type=int, default=20_000)
    parser.add_argument("--days", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = arguments.rows_per_day, arguments.days
    models: Models = {
        "fm": TEACHER | {"supervision": STORED},
        "alone": TEACHER | {"supervision": STORED},
        "domain": DOMAIN,
        "large": LARGE | {"transfer": STACK, "control": True},
    }
    models |= {
        f"small{batch}": STUDENT | {"batch_size": batch, "transfer": STACK, "control": True} for batch in SMALL_BATCHES
    }
    found, _ = seconds(models, *size)
    several = [
        [seconds({f"vm{n}": STUDENT for n in range(count)}, *size)[1] for count in (1, STUDENTS)] for _ in range(TURNS)
    ]
    ratios = {
        f"whole stack, small student, batches of {batch}": (
            ratio(found, f"small{batch}", f"small{batch}.control"),
            STACK_GOAL,
        )
        for batch in SMALL_BATCHES
    }
    ratios["whole stack, large student"] = ratio(found, "large", "large.control"), STACK_GOAL
    ratios["writing supervision"] = ratio(found, "fm", "alone"), SUPERVISION_GOAL
    ratios[f"{STUDENTS} students to one"] = median(ten_s / one_s for one_s, ten_s in several), STUDENTS_GOAL
    for name, (times, goal) in ratios.items():
        print(f"{name:46}{times:6.2f} (at most {goal})")
    sys.exit(any(times > goal for times, goal in ratios.values()))


if __name__ == "__main__":
    main()
