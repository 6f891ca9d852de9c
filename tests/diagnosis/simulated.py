"""Simulates taught tasks: predictions of student, control and teacher, computed from the true logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from exfm.diagnosis.causes import decide
from exfm.diagnosis.taught_measures import learning, measure
from exfm.diagnosis.taught_rows import TaughtRows
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window

HOUR_US = 3_600_000_000
WINDOWS, ROWS, FIRST = 8, 5_000, 2
HIDDEN = 0.7
Logits = np.ndarray[Any, np.dtype[np.float64]]
Distort = Callable[[Logits, np.random.Generator], Logits]


def sigmoid(logit: Logits) -> Logits:
    return np.asarray(1 / (1 + np.exp(-logit)))


def attenuation(unseen_variance: float) -> float:
    """Computes the factor of the logit for a model that does not see causes of this variance.

    The probit approximation: (pi^2 / 3 * (15 / 16)^2)^-1 = 0.346.
    """
    return float(1 / np.sqrt(1 + 0.346 * unseen_variance))


def simulate(
    *,
    teacher: Distort = lambda logit, rng: logit,
    fresh: Distort | None = None,
    control: Distort = lambda logit, rng: logit,
    knows: float = 1.0,
    sees: float = 1.0,
    moved: float = 0.3,
    covered: float = 1.0,
    rows: int = ROWS,
    seed: int = 0,
) -> list[TaughtRows]:
    """Simulates the windows of a taught task.

    A click has causes that the student sees and hidden ones, which the teacher knows too. Student, control and teacher
    are calibrated but for the distortions.

    Args:
        teacher, control: from the undistorted logits to those of the predictions.
        fresh: the same for the teacher's predictions before training on the example; missing by default.
        knows: share of the hidden causes' variance that the teacher knows.
        sees: share of the other causes' variance that student and control see.
        moved: how much of the teacher's hidden causes the student has.
        covered: share of examples with supervision.
    """
    rng = np.random.default_rng(seed)

    def normal(variance: float) -> Logits:
        return rng.normal(0, np.sqrt(variance), rows)

    windows = []
    for index in range(WINDOWS):
        seen, unseen = -1.5 + normal(sees), normal(1 - sees)
        taught, hidden = normal(knows * HIDDEN**2), normal((1 - knows) * HIDDEN**2)
        label = rng.random(rows) < sigmoid(seen + unseen + taught + hidden)
        truth = attenuation((1 - knows) * HIDDEN**2) * (seen + unseen + taught)
        control_logit = control(attenuation(1 - sees + HIDDEN**2) * seen, rng)
        served = sigmoid(teacher(truth, rng))
        served[rng.random(rows) >= covered] = np.nan
        start_us = index * 6 * HOUR_US
        time_us = start_us + np.sort(rng.integers(0, 6 * HOUR_US, rows))
        windows.append(
            TaughtRows(
                window=Window(index, start_us, start_us + 6 * HOUR_US),
                group=rng.zipf(1.5, rows).clip(1, 2_000),
                label=label,
                student=sigmoid(control_logit + moved * taught),
                control=sigmoid(control_logit),
                served=served,
                fresh=np.full(rows, np.nan) if fresh is None else sigmoid(fresh(truth, rng)),
                age_s=np.where(np.isfinite(served), (time_us - start_us) / 1e6 + 60, np.nan),
                event_time_us=time_us,
            )
        )
    return windows


def measured(windows: list[TaughtRows]) -> dict[str, Any]:
    """Measures a taught task whose first windows are not scored."""
    return measure(lambda scored: windows[FIRST:] if scored else windows, 300, 0)


def diagnosed(windows: list[TaughtRows], lookups: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """Computes the entry of a taught task in a diagnosis, with its verdict."""
    measures = measured(windows)
    gain, headroom = measures["gain"], measures["headroom"]["recalibrated"]
    by_window = [
        {
            "window": rows.window.index,
            "examples": rows.label.size,
            "ne": Moments.from_predictions(rows.control, rows.label).ne,
        }
        for rows in windows
    ]
    entry = {
        **measures,
        "model": "vm",
        "control": "vm.control",
        "teacher": "fm",
        "task": "click",
        "teacher_task": "click",
        "elsewhere": False,
        "lookups": list(lookups),
        "learning": learning(by_window, FIRST),
        "gain_share": gain["percent"] / headroom["percent"] if headroom["interval95"][0] > 0 else None,
    }
    entry["best_without_lookup"] = entry["gain_share"]
    rates = {"dense": {"lr": 0.001}, "tables": {"lr": 0.05}}
    model = {
        "features": ["user_id"],
        "embedding_dim": 16,
        "where": {},
        "optimizer": rates,
        "supervision": {"delay": "1d"},
        "transfer": [{"name": "direct", "teacher": "fm", "weight": 1.0}],
    }
    return {**entry, "verdict": decide(entry, {"models": {"vm": model, "fm": model}, "stream": {"window": "6h"}})}
