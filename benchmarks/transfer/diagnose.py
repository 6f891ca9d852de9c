"""How often `exfm diagnose` names a cause that was planted: runs on the simulated stream, several causes in each.

    python benchmarks/transfer/diagnose.py --seeds 20-29 --folder runs/diagnose

A run per seed trains an FM, and another a student for every plant, all of the same shape but where the plant says so.
Teachers from elsewhere are the FM's predictions, distorted. Runs that are complete in the folder are not trained again.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

import exfm
from exfm.diagnosis.diagnose import diagnose
from exfm.supervision.store import Store

RATES = {"dense": {"lr": 0.002}, "tables": {"lr": 0.2}}
FM = {
    "backbone": {"name": "wukong", "layers": 2},
    "sequence_encoder": {"name": "din", "normalise": "softmax"},
    "optimizer": RATES,
    "tasks": ["click"],
    "batch_size": 256,
}
STUDENT = {
    "backbone": {"name": "dlrm"},
    "features": ["user_id", "ad_id", "surface"],
    "optimizer": RATES,
    "tasks": ["click"],
    "batch_size": 256,
    "control": True,
}
Logits = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Plant:
    """Describes a student with a cause planted: what differs from the healthy one, and the verdict that names it.

    Attributes:
        strategy: of the transfer; ``direct`` carries a teacher's faults into the student, ``auxiliary_head`` does not.
    """

    expected: str
    teacher: str = "fm"
    strategy: str = "direct"
    changes: dict[str, Any] = field(default_factory=dict)

    def model(self) -> dict[str, Any]:
        """Makes the student's section of the experiment."""
        transfer = [{"name": self.strategy, "teacher": self.teacher}]
        return {**copy.deepcopy(STUDENT), **self.changes, "transfer": transfer}


def _rates(dense: float, tables: float) -> dict[str, Any]:
    return {"optimizer": {"dense": {"lr": dense}, "tables": {"lr": tables}}}


PLANTS = {
    "healthy": Plant("pays", strategy="auxiliary_head"),
    "no_headroom": Plant("no_headroom", "twin"),
    "biased": Plant("biased_teacher", "fm_biased"),
    "noisy": Plant("noisy_teacher", "fm_noisy"),
    "stale": Plant("stale_teacher", "fm_old"),
    "sparse_labels": Plant("low_coverage", "fm_sparse"),
    "scarce": Plant("scarce_traffic", changes={"where": {"user_id": {"bucket": 0, "of": 50}}}),
    "small": Plant(
        "small_student",
        changes={"features": ["surface"], "embedding_dim": 4, "backbone": {"name": "dlrm", "hidden": [4]}},
    ),
    "dense_rate_high": Plant("wrong_rate", changes=_rates(0.3, 0.2)),
    "tables_rate_high": Plant("wrong_rate", changes=_rates(0.002, 4.0)),
    "rates_low": Plant("wrong_rate", changes=_rates(0.0001, 0.01)),
}
MILD = {
    "healthy_direct": Plant("pays"),
    "biased_mild": Plant("biased_teacher", "fm_biased_mild"),
    "noisy_mild": Plant("noisy_teacher", "fm_noisy_mild"),
    "stale_mild": Plant("stale_teacher", "fm_old"),
    "half_labels": Plant("low_coverage", "fm_half"),
    "scarce_mild": Plant("scarce_traffic", changes={"where": {"user_id": {"bucket": 0, "of": 12}}}),
    "small_mild": Plant("small_student", changes={"features": ["ad_id"], "embedding_dim": 4}),
    "rates_high_mild": Plant("wrong_rate", changes=_rates(0.01, 1.0)),
    "rates_low_mild": Plant("wrong_rate", changes=_rates(0.0004, 0.04)),
}
"""Plants at a fraction of the strength, which need not be the main cause any more."""

DISTORTIONS: dict[str, Callable[..., Logits]] = {
    "fm_biased": lambda logit, rng: logit + 1.0,
    "fm_noisy": lambda logit, rng: logit + rng.normal(0, 2.5, logit.shape),
    "fm_sparse": lambda logit, rng: np.where(rng.random(logit.shape) < 0.05, logit, np.nan),
    "fm_biased_mild": lambda logit, rng: logit + 0.4,
    "fm_noisy_mild": lambda logit, rng: logit + rng.normal(0, 1, logit.shape),
    "fm_half": lambda logit, rng: np.where(rng.random(logit.shape) < 0.4, logit, np.nan),
}


def main() -> None:
    """Runs the missing runs and prints the table of verdicts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="20-29", help="FIRST-LAST")
    parser.add_argument("--folder", type=Path, default=Path("runs/diagnose"))
    parser.add_argument("--mild", action="store_true", help="plants of lower strength")
    parser.add_argument("--days", type=int, default=8)
    parser.add_argument("--rows-per-day", type=int, default=6_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    first, _, last = arguments.seeds.partition("-")
    seeds = range(int(first), int(last or first) + 1)
    plants, delay = (MILD, "1d") if arguments.mild else (PLANTS, "3d")
    named: dict[str, Counter[str]] = {plant: Counter() for plant in plants}
    for seed in seeds:
        source = {"days": arguments.days, "rows_per_day": arguments.rows_per_day, "seed": seed}
        verdicts = of_seed(arguments.folder / f"seed-{seed}", source, plants, delay)
        for plant, cause in verdicts.items():
            named[plant][cause] += 1
        print(f"seed {seed}: {verdicts}", flush=True)
    print(table(named, plants, len(seeds)))


def of_seed(folder: Path, source: dict[str, int], plants: dict[str, Plant], delay: str) -> dict[str, str]:
    """Returns the cause that each plant is diagnosed with; ``delay`` is that of the stale teacher."""
    seed = source["seed"]
    stream = {"source": {"name": "synthetic_ads", "users": 800, "ads": 200, **source}, "window": "12h"}
    common = {"seed": seed, "stream": stream, "evaluation": {"skip": 0.4, "replicates": 1_000}}
    run(folder, {**common, "name": "fm", "models": {"fm": FM}})
    for name, distort in DISTORTIONS.items():
        write_teacher(folder, name, partial(distort, rng=np.random.default_rng(seed)))
    twin = {key: value for key, value in STUDENT.items() if key != "control"}
    teachers = {"fm": FM, "fm_old": {**FM, "supervision": {"delay": delay}}, "twin": twin}
    elsewhere = {
        name: {
            "path": str(folder / f"{name}.parquet"),
            "predictions": {"click": {"column": "logit", "kind": "logit"}},
        }
        for name in DISTORTIONS
    }
    students = {name: plant.model() for name, plant in plants.items()}
    name = "mild" if plants is MILD else "students"
    run(folder, {**common, "name": name, "models": {**teachers, **students}, "teachers": elsewhere})
    store = Store(str(folder / name))
    config_yaml = store.workspace.read("config.yaml").decode()
    diagnosis = diagnose(store, store.workspace.read_json("results.json"), config_yaml)
    (folder / f"{name}.json").write_text(json.dumps(diagnosis, indent=2))
    return {entry["model"]: entry["verdict"]["cause"] for entry in diagnosis["students"]}


def run(folder: Path, experiment: dict[str, Any]) -> None:
    """Runs an experiment unless its results are there."""
    name = experiment["name"]
    if (folder / name / "results.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**experiment, "run_dir": str(folder / name)}))
    exfm.run(exfm.load_experiment(str(file)), lambda _: None)


def write_teacher(folder: Path, name: str, distort: Callable[[Logits], Logits]) -> None:
    """Writes a teacher from elsewhere: the FM's predictions, made before it trained on their examples, distorted."""
    if (folder / f"{name}.parquet").exists():
        return
    files = sorted((folder / "fm" / "predictions" / "fm").glob("*.parquet"))
    rows = pa.concat_tables([pq.read_table(file, columns=["example_id", "prediction_click"]) for file in files])
    probability = rows["prediction_click"].to_numpy().astype(np.float64).clip(1e-6, 1 - 1e-6)
    logit = distort(np.log(probability / (1 - probability)))
    pq.write_table(
        pa.table({"example_id": rows["example_id"], "logit": pa.array(logit, from_pandas=True)}),
        folder / f"{name}.parquet",
    )


def table(named: dict[str, Counter[str]], plants: dict[str, Plant], seeds: int) -> str:
    """Writes the table of docs/run/diagnose.md."""
    lines = ["| planted | verdict expected | named | other verdicts |", "|---|---|---|---|"]
    for plant, counts in named.items():
        expected = plants[plant].expected
        others = ", ".join(f"`{cause}` {count}" for cause, count in counts.most_common() if cause != expected)
        lines.append(f"| {plant} | `{expected}` | {counts[expected]} of {seeds} | {others} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
