"""Students of teachers as they are: calibrated, biased, overconfident, noisy, stale, of another task, of late labels.

    python benchmarks/transfer/teachers.py simulated --seeds 1,2,3,4,5
    python benchmarks/transfer/teachers.py movielens --seeds 1,2,3,4,5 stream.source.path=FOLDER

An FM is trained once for each seed. Its predictions, made before it trained on their rows, are distorted, written to
Parquet files and given to students as teachers from elsewhere, each in every form of the auxiliary head. The table has
the students' gains over a common control, in percent, and the calibration of the served model relative to the
control's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from table import interval

import exfm
from exfm.serving.predict import predict
from exfm.supervision.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"
STREAMS = {
    "simulated": (EXAMPLES / "quickstart.yaml", "vm"),
    "movielens": (EXAMPLES / "paper" / "single_vm_movielens.yaml", "distilled"),
}
"""The experiment that has the FM, and the model of it that the students are like."""

FORMS = """
default: [{name: auxiliary_head}]
published: [{name: auxiliary_head, weight: 1}]
"""
STALE = (1, 4, 6)
"""Ages of snapshots, in windows."""

Teacher = tuple[str, dict[str, str]]
"""A file, and its column for each task."""


def logit(probability: np.ndarray) -> np.ndarray:
    """Log odds."""
    clipped = np.clip(probability.astype(np.float64), 1e-6, 1 - 1e-6)
    return np.asarray(np.log(clipped / (1 - clipped)))


def distortions(seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Changes of a calibrated teacher's log odds, by the name of the teacher that they make."""
    noise = np.random.default_rng(seed)
    return {
        "calibrated": lambda x: x,
        "shifted_up_half": lambda x: x + 0.5,
        "shifted_down_half": lambda x: x - 0.5,
        "shifted_up": lambda x: x + 1,
        "shifted_down": lambda x: x - 1,
        "stretched": lambda x: 2 * x,
        "noisy": lambda x: x + noise.normal(size=x.size),
        "worse_than_the_student": lambda x: x + noise.normal(scale=4, size=x.size),
    }


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stream", choices=STREAMS)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--seeds", default="1,2,3,4,5")
    parser.add_argument("--only", default="", help="names of teachers; all by default")
    parser.add_argument("--forms", default=FORMS, help="YAML of NAME: [strategy, ...] to compare")
    parser.add_argument("--keep", type=Path, help="a folder for the FM's predictions, which are made again otherwise")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    forms = yaml.safe_load(arguments.forms)
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, arguments.seeds.split(",")):
            kept = (arguments.keep or Path(folder)) / f"{arguments.stream}-{seed}"
            kept.mkdir(parents=True, exist_ok=True)
            results.append(run_seed(arguments, seed, kept, forms))
            print(f"seed {seed} done", flush=True)
    print_table(results, forms)


def run_seed(arguments: argparse.Namespace, seed: int, folder: Path, forms: dict[str, Any]) -> dict[str, Any]:
    """Trains the students of all teachers with a seed; returns results.json."""
    config, like = STREAMS[arguments.stream]
    whole = {**yaml.safe_load(config.read_text()), "compare": []}
    overrides = [*arguments.overrides, f"seed={seed}"]
    teachers = teacher_files(whole, seed, overrides, folder)
    only = arguments.only.split(",") if arguments.only else list(teachers)
    student = {**whole["models"][like], "control": False}
    models: dict[str, Any] = {}
    elsewhere: dict[str, Any] = {}
    for name in only:
        path, columns = teachers[name]
        predictions = {task: {"column": column, "kind": "probability"} for task, column in columns.items()}
        elsewhere[name] = {"path": path, "predictions": predictions}
        (task,) = columns
        models[f"control-{task}"] = {**student, "tasks": [task], "transfer": []}
        for form, strategies in forms.items():
            transfer = [{**strategy, "teacher": name} for strategy in strategies]
            models[f"{name}-{form}"] = {**student, "tasks": [task], "transfer": transfer}
    file = folder / "students.yaml"
    file.write_text(yaml.safe_dump({**whole, "models": models, "teachers": elsewhere}))
    with tempfile.TemporaryDirectory() as run_dir:
        return exfm.run(exfm.load_experiment(str(file), [*overrides, f"run_dir={run_dir}"]))


def teacher_files(whole: dict[str, Any], seed: int, overrides: list[str], folder: Path) -> dict[str, Teacher]:
    """Trains the FM and writes the files of all teachers, where the folder does not hold them."""
    index = folder / "teachers.json"
    if index.exists():
        return dict(json.loads(index.read_text()))
    file = folder / "fm.yaml"
    file.write_text(yaml.safe_dump({**whole, "models": {"fm": {**whole["models"]["fm"], "supervision": {}}}}))
    window: timedelta = exfm.load_experiment(str(file), overrides).config.stream.window
    # A small student of the oldest snapshot, for whose sake the run keeps its snapshots.
    delay = f"models.fm.supervision.delay={int(window.total_seconds()) * max(STALE)}s"
    reader = "models.reader={backbone: {name: mlp}, embedding_dim: 4, transfer: [{name: direct, teacher: fm}]}"
    experiment = exfm.load_experiment(str(file), [*overrides, delay, reader, f"run_dir={folder}/run"])
    stale = StalePredictions(experiment, folder)
    exfm.run(experiment, on_progress=stale.see)
    store = Store(experiment.run_dir)
    windows = [commit.window for commit in store.log.commits("train", "fm") if commit.files]
    labels = experiment.schema.labels
    first = labels[0]
    teachers: dict[str, Teacher] = {}
    for label in labels:
        # Of the windows before, the FM has no labels yet.
        known = windows[1 + -(-label.delay // window) :]
        table = pa.concat_tables([store.predictions("fm", window) for window in known])
        ids, right = table.column("example_id").to_numpy(), logit(table.column(f"prediction_{label.name}").to_numpy())
        for name, distort in distortions(seed).items():
            full = name if label is first else f"{label.name}_{name}"
            teachers[full] = write(folder, full, ids, distort(right), label.name)
        for other in labels:
            if other is not label:
                full = f"{other.name}_by_{label.name}"
                teachers[full] = write(folder, full, ids, right, other.name)
    for age in STALE:
        teachers[f"stale_{age}"] = write(folder, f"stale_{age}", *stale.read(age, first.name), first.name)
    index.write_text(json.dumps(teachers))
    return teachers


class StalePredictions:
    """Predictions of each window by older snapshots, made while the FM trains, because a run retires snapshots."""

    def __init__(self, experiment: exfm.Experiment, folder: Path) -> None:
        self.experiment, self.folder = experiment, folder
        self.trained: list[int] = []

    def see(self, progress: Any) -> None:
        """Predicts a window when its first chunk has been trained on."""
        window = progress.window
        if window.index in self.trained:
            return
        for age in STALE:
            if len(self.trained) > age:
                path, version = self._path(age, window.index), str(self.trained[-1 - age])
                predict(self.experiment, "fm", path, at=version, between=window)
        self.trained.append(window.index)

    def read(self, age: int, task: str) -> tuple[np.ndarray, np.ndarray]:
        """Reads example ids and log odds of all windows."""
        table = pa.concat_tables([pq.read_table(self._path(age, index)) for index in self.trained[age + 1 :]])
        return table.column("example_id").to_numpy(), logit(table.column(f"prediction_{task}").to_numpy())

    def _path(self, age: int, window: int) -> str:
        return str(self.folder / f"stale-{age}-{window}.parquet")


def write(folder: Path, name: str, ids: np.ndarray, logits: np.ndarray, task: str) -> Teacher:
    """Writes a teacher's file."""
    path = folder / f"{name}.parquet"
    pq.write_table(pa.table({"example_id": ids, "prediction": 1 / (1 + np.exp(-logits))}), path)
    return str(path), {task: "prediction"}


def print_table(results: list[dict[str, Any]], forms: dict[str, Any]) -> None:
    """Prints gains over the control, and calibrations relative to the control's, as means over seeds."""
    students = [name for name in results[0]["models"] if not name.startswith("control-")]
    teachers = dict.fromkeys(name.rpartition("-")[0] for name in students)
    print(f"| teacher | {' | '.join(f'{form}: gain % | calibration' for form in forms)} |")
    print(f"|{'---|' * (1 + 2 * len(forms))}")
    means: dict[str, list[float]] = {form: [] for form in forms}
    for name in teachers:
        cells = []
        for form in forms:
            gains, levels = [], []
            for seed in results:
                ((task, own),) = seed["models"][f"{name}-{form}"]["tasks"].items()
                control = seed["models"][f"control-{task}"]["tasks"][task]
                gains.append(100 * (1 - own["ne"] / control["ne"]))
                levels.append(own["calibration"] / control["calibration"])
            means[form].append(float(np.mean(gains)))
            cells += [interval(np.array(gains)), f"{np.mean(levels):.3f}"]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print(f"| mean | {' | '.join(f'{np.mean(means[form]):+.2f} | ' for form in forms)} |")


if __name__ == "__main__":
    main()
