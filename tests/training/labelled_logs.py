"""The log of ``logs`` with a watch time and an action beside the click, for tests of labels that are not 0 or 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from tests.training.logs import experiment_dict, make_log

WATCH = {"name": "watch", "kind": "regression", "minimum": 0}
ACTION = {"name": "action", "kind": "multiclass", "classes": 4}


def labelled_log(rows: int = 1_800, *, unknown: float = 0.1) -> pa.Table:
    """Adds seconds with a heavy tail and a class to the log; some of each are null."""
    log, random = make_log(rows), np.random.default_rng(5)
    user, item, price = (log.column(name).to_numpy() for name in ("user", "item", "price"))
    watch = np.exp(2 + np.sin(user) + 0.5 * np.cos(item) + 0.1 * price + random.normal(0, 0.5, rows))
    scores = np.stack([np.sin(user), np.cos(item), 0 * user, np.sin(user + item)], axis=1)
    action = (2 * scores + random.gumbel(size=scores.shape)).argmax(axis=1)
    log = log.append_column("watch", pa.array(watch, mask=random.random(rows) < unknown))
    return log.append_column("action", pa.array(action, mask=random.random(rows) < unknown))


def labelled_experiment(path: str, run_dir: str, *labels: dict[str, Any]) -> dict[str, Any]:
    """The experiment of ``logs`` with further labels."""
    config = experiment_dict(path, run_dir)
    config["stream"]["source"]["labels"] += labels
    return config
