"""Jobs of four files, killed with SIGKILL at twenty random moments: `python benchmarks/soak_files.py`.

The FM is alone in its file, and so is each of three VMs, whose file names the FM by its run. Their jobs follow the
stream at the same time and are restarted whenever they are killed. Predictions and supervision must be those of a
single file, byte for byte, and so must gains and coverage.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml
from soak_kill import killed

STUDENTS = ("first", "second", "third")


def single_file(run_dir: Path, days: int) -> dict[str, Any]:
    """An FM that stores states, rows and embeddings, and three VMs; the second uses them all."""
    supervision = {"embedding": "float16", "states": {"user_id": ["user_id", "history"]}, "rows": ["ad_id"]}
    student = {
        "backbone": {"name": "dlrm"},
        "features": ["user_id", "ad_id"],
        "batch_size": 128,
        "tasks": ["click"],
        "transfer": [{"name": "auxiliary_head", "teacher": "fm"}],
        "control": True,
    }
    everything = [{"name": name, "teacher": "fm"} for name in ("auxiliary_head", "compact_features", "representation")]
    source = {"name": "synthetic_ads", "days": days, "rows_per_day": 4000, "users": 500, "ads": 200}
    return {
        "name": "files",
        "run_dir": str(run_dir),
        "stream": {"source": source, "window": "1d"},
        "models": {
            "fm": {
                "backbone": {"name": "wukong"},
                "sequence_encoder": {"name": "din"},
                "tasks": ["click"],
                "supervision": supervision,
            },
            "first": {**student, "where": {"surface": 0}},
            "second": {**student, "where": {"surface": 1}, "transfer": everything},
            "third": student,
        },
    }


def four_files(folder: Path, days: int) -> dict[str, Path]:
    """Writes a file for each model; those of the students name the FM by its run."""
    paths: dict[str, Path] = {}
    for name in ("fm", *STUDENTS):
        config = copy.deepcopy(single_file(folder / name, days))
        config["models"] = {name: config["models"][name]}
        if name in STUDENTS:
            config["teachers"] = {"fm": {"run": str(folder / "fm"), "model": "fm"}}
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(yaml.safe_dump(config))
    return paths


def checksums(run_dir: Path, model: str) -> dict[str, str]:
    """Hashes the predictions and the supervision of a model and of its control."""
    sums: dict[str, str] = {}
    for kind in ("predictions", "supervision"):
        for name in (model, f"{model}.control"):
            for file in sorted((run_dir / kind / name).glob("*.parquet")):
                sums[f"{kind}/{name}/{file.name}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return sums


def main() -> None:
    """Exit status 1 when anything differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20, help="of all four jobs together")
    parser.add_argument("--days", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = folder / "whole.yaml"
        whole.write_text(yaml.safe_dump(single_file(folder / "whole", options.days)))
        subprocess.run([sys.executable, "-m", "exfm", "run", str(whole)], check=True, capture_output=True)
        paths = four_files(folder, options.days)
        share = options.kills // len(paths)
        threads: list[threading.Thread] = []
        for seed, (model, path) in enumerate(paths.items()):
            command = [sys.executable, "-m", "exfm", "train", str(path), "--model", model, "--follow"]
            arguments = ([*command, "--idle-timeout", "45"], model, share, (2.0, 20.0), seed)
            threads.append(threading.Thread(target=killed, args=arguments))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = json.loads((folder / "whole" / "results.json").read_text())
        equal = checksums(folder / "whole", "fm") == checksums(folder / "fm", "fm")
        for model in STUDENTS:
            subprocess.run([sys.executable, "-m", "exfm", "run", str(paths[model])], check=True, capture_output=True)
            results = json.loads((folder / model / "results.json").read_text())
            same = checksums(folder / "whole", model) == checksums(folder / model, model)
            same &= results["gains"] == [gain for gain in expected["gains"] if gain["model"] == model]
            same &= results["supervision"]["fm"] == {model: expected["supervision"]["fm"][model]}
            print(f"{model}: {'equal' if same else 'DIFFERENT'}", flush=True)
            equal &= same
        print("equal" if equal else "DIFFERENT", flush=True)
        sys.exit(not equal)


if __name__ == "__main__":
    main()
