"""Time of a request, a context and its candidates, beside as many whole rows: `python benchmarks/request_scoring.py`.

A model of the synthetic ads is exported with ``--requests``. Printed are the times of ``Predictor.predict`` of 1,000
rows that repeat a user's columns, of ``Predictor.predict_request``, of that with an export that lacks the program of a
request, and their ratio to the first, of rows as mappings and as a record batch. All take turns.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from export import times_us, trained

import exfm
from exfm.serving import load
from exfm.serving.export import Form, export
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.predictor import Predictor

MODELS: dict[str, dict[str, Any]] = {
    "wukong, averaged": {"backbone": {"name": "wukong"}},
    "wukong, din": {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "din"}},
    "wukong, transformer": {"backbone": {"name": "wukong"}, "sequence_encoder": {"name": "transformer"}},
    "the same without target": {
        "backbone": {"name": "wukong"},
        "sequence_encoder": {"name": "transformer", "append_target": False},
    },
}
CONTEXT = ("user_id", "country", "age_bucket", "surface", "history.ad", "history.topic", "history.age_hours")


def actions(predictor: Predictor, rows: pa.RecordBatch, count: int) -> dict[str, Callable[[], object]]:
    """The actions that are timed."""
    model = predictor.model
    read = rows.select(list(model.types))
    first = read.slice(0, 1)
    shared = [name for name in read.schema.names if name in CONTEXT]
    others = [name for name in read.schema.names if name not in CONTEXT]
    repeated = {name: first.column(name).take(pa.array([0] * count)) for name in shared}
    candidates = read.select(others).slice(0, count)
    whole = pa.RecordBatch.from_pydict({**repeated, **{name: candidates.column(name) for name in others}})
    context, candidate_dicts, dicts = first.select(shared).to_pylist()[0], candidates.to_pylist(), whole.to_pylist()
    without = Predictor(LoadedModel(model.description.model_copy(update={"request_inputs": ()}), model.program))
    expected = predictor.predict(whole)
    for other in (predictor.predict_request(context, candidates), without.predict_request(context, candidate_dicts)):
        for task, values in other.items():
            np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-5)
    print(f"candidates have {', '.join(others)}; the context {', '.join(shared)}", flush=True)
    return {
        "rows, mappings": lambda: predictor.predict(dicts),
        "request, mappings": lambda: predictor.predict_request(context, candidate_dicts),
        "request without program, mappings": lambda: without.predict_request(context, candidate_dicts),
        "rows, batch": lambda: predictor.predict(whole),
        "request, batch": lambda: predictor.predict_request(context, candidates),
        "request without program, batch": lambda: without.predict_request(context, candidates),
    }


def measure(name: str, model: Mapping[str, Any], count: int, repeats: int) -> None:
    """Prints a line for each action."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        experiment = trained(folder, model)
        export(experiment, "vm", str(folder / "vm"), Form(requests=True), compute_figures=False)
        span = experiment.source.time_range()
        rows = next(iter(experiment.source.read(exfm.sources.Window(0, span.start_us, span.end_us))))
        us = times_us(actions(load(str(folder / "vm")), rows, count), repeats)
    for action, values in us.items():
        base = us["rows, mappings" if action.endswith("mappings") else "rows, batch"]
        ratio = np.median(values) / np.median(base)
        print(f"{name:<26}{action:<36}{np.median(values) / 1e3:>9.2f} ms{ratio:>7.2f}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, {options.candidates:,} candidates")
    for name in options.models:
        measure(name, MODELS[name], options.candidates, options.repeats)


if __name__ == "__main__":
    main()
