"""A small results.json."""

from __future__ import annotations

from typing import Any

import pytest


def model(ne: float, oracle: bool = True) -> dict[str, Any]:
    limit = {"bayes_ne": 0.8} if oracle else {}
    windows = [
        {"window": day, "start": f"2024-01-{day + 1:02d}T00:00:00Z", "examples": 100, "ne": ne + 0.1 / (1 + day),
         "auc": 0.7, **limit}
        for day in range(8)
    ]  # fmt: skip
    figures = {
        "examples": 600, "ne": ne, "ne_recalibrated": ne - 0.01, "recalibration": {"scale": 0.9, "shift": -0.1},
        "auc": 0.75, "auc_error_bound": 1e-6, "gauc": 0.7, "log_loss": 0.3,
        "calibration": 1.02, "base_rate": 0.125, "windows": windows,
    }  # fmt: skip
    if oracle:
        figures |= {"bayes_ne": 0.8, "ne_above_bayes": ne - 0.8}
    return {
        "examples": 800,
        "tasks": {"click": figures},
        "train_examples_per_second": 12_345.0,
        "parameters": {"dense": 1_234, "sparse": 5_678_901},
        "flops_per_example": 2.5e6,
    }


@pytest.fixture
def results() -> dict[str, Any]:
    gain = {
        "model": "vm", "control": "vm.control", "task": "click", "examples": 600, "ne_gain_percent": 0.4321,
        "interval95": [0.31, 0.55], "teacher": "fm", "teacher_ne_gain_percent": 1.25, "gain_share": 0.3457,
    }  # fmt: skip
    return {
        "experiment": "drifting",
        "seed": 7,
        "models": {"fm": model(0.81), "vm": model(0.83), "vm.control": model(0.835)},
        "gains": [gain],
        "supervision": {
            "fm": {
                "vm": {
                    "examples": 800, "hit_rate": 0.987, "age_s": 90_000.0,
                    "windows": [{"window": 0, "examples": 800, "hit_rate": 0.987, "age_s": 90_000.0}],
                    "age_histogram": {"edges_s": [1_000.0, 10_000.0, 100_000.0], "counts": [0, 90, 700, 0]},
                }
            }
        },
        "data": {"skipped_rows": 0},
        "time": {
            "total_s": 210.0, "time_to_first_batch_s": 6.1, "data_s": 31.0, "train_s": 140.0, "supervise_s": 22.0,
            "effective_training_time": 0.667,
        },
    }  # fmt: skip
