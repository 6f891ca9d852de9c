"""Times of events reach the encoders that read them: through models, threads, exports and the loader of exports."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

import exfm
from exfm.data.batch import Batch
from exfm.data.decode import decode
from exfm.parallel import CpuTrunkRunner
from exfm.serving.capture import capture
from exfm.serving.description import needs_event_time
from exfm.serving.loaded_model import LoadedModel
from exfm.serving.predictor import Predictor
from exfm.serving.served_model import ServedModel
from tests.modeling.cases import random_batch, schema_of
from tests.modeling.test_ranking_model import build
from tests.serving.descriptions import description_of
from tests.serving.rows import random_rows, trained, untaught_arm, with_columns

SCHEMA = schema_of("user", "item", "visits")
TIMED = {"name": "hstu", "layers": 1, "time_buckets": 64}
READERS: dict[str, dict[str, Any]] = {
    "encoder": {"backbone": {"name": "mlp"}, "sequence_encoder": TIMED},
    "encoder in a backbone": {"backbone": {"name": "gem", "layers": 1, "encoder": TIMED}},
}
WITHOUT = {"backbone": {"name": "mlp"}, "sequence_encoder": {"name": "hstu"}}


def older(batch: Batch) -> Batch:
    """The same examples with other times of events."""
    sequences = {}
    for name, events in batch.sequences.items():
        assert events.ages_E is not None
        sequences[name] = replace(events, ages_E=events.ages_E * 1_000 + 70)
    return replace(batch, sequences=sequences)


@pytest.mark.parametrize("config", READERS.values(), ids=READERS)
def test_times_reach_what_reads_them(config: dict[str, Any]) -> None:
    model, batch = build(config, schema=SCHEMA), random_batch(SCHEMA, 20)
    with torch.no_grad():
        now, then = (model(model.narrow(examples)).logits["click"] for examples in (batch, older(batch)))
    has_two_events = batch.sequences["visits"].offsets.diff() > 0  # and the candidate
    assert torch.equal(now != then, has_two_events)


def test_what_does_not_read_times_gets_none() -> None:
    model, batch = build(WITHOUT, schema=SCHEMA), random_batch(SCHEMA, 20)
    _, sequences = model.featurizer(model.narrow(batch))
    assert sequences["visits"].ages_E is None
    with torch.no_grad():
        now, then = (model(model.narrow(examples)).logits["click"] for examples in (batch, older(batch)))
    assert torch.equal(now, then)


def test_threads_that_share_a_batch_read_its_times() -> None:
    batch, outputs = random_batch(SCHEMA, 1_100), []
    for threads in (1, 2):
        model = build(READERS["encoder"], schema=SCHEMA)
        with CpuTrunkRunner(threads).training_step(1_100) as run_trunk:
            outputs.append(model(model.narrow(batch), run_trunk).logits["click"].detach())
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-6)


def predictor(config: dict[str, Any], schema: exfm.schema.FeatureSchema) -> tuple[Predictor, ServedModel, Any]:
    """An export, without its files."""
    arm = untaught_arm({"embedding_dim": 8, **config}, schema)
    model, weights = trained(arm, schema)
    served = ServedModel(arm, schema, weights)
    columns = {"user": "int64", "item": "int64", "visits.item": "list of int64"}
    if served.model.featurizer.reads_times:
        columns |= {"visits.at": "list of timestamp", "event_time": "timestamp"}
    event_time = "event_time" if needs_event_time(served.features) else ""
    description = description_of(served.features, columns, schema.tasks, event_time=event_time)
    return Predictor(LoadedModel(description, capture(served).module())), served, model


@pytest.mark.parametrize("config", READERS.values(), ids=READERS)
def test_an_export_takes_times_as_the_stream_has_them(config: dict[str, Any]) -> None:
    schema = with_columns(SCHEMA)
    loaded, _, model = predictor(config, schema)
    rows = random_rows(schema, 30)
    with torch.no_grad():
        expected_B = model(model.narrow(decode(rows, schema))).logits["click"].sigmoid()
    features = rows.select(["user", "item", "visits.item", "visits.at", "event_time"])
    texts = [
        row
        | {
            "event_time": row["event_time"].isoformat(),
            "visits.at": [time.isoformat() + "Z" for time in row["visits.at"]],
        }
        for row in features.to_pylist()
    ]
    for form in (features, features.to_pylist(), texts):
        torch.testing.assert_close(torch.from_numpy(loaded.predict(form)["click"]), expected_B, rtol=0, atol=1e-6)
    late = features.to_pylist()[:1]
    late[0]["visits.item"], late[0]["visits.at"] = [3], [late[0]["event_time"] + timedelta(seconds=1)]
    with pytest.raises(exfm.ConfigError, match=r"row 0: visits\.at: an event's time is missing, or later"):
        loaded.predict(late)
    with pytest.raises(exfm.ConfigError, match="row 0: event_time: the value is missing"):
        loaded.predict([late[0] | {"event_time": None}])


def test_an_export_asks_for_times_only_where_they_are_read() -> None:
    loaded, served, _ = predictor(WITHOUT, with_columns(SCHEMA))
    assert "visits.age_seconds" not in served.names
    assert not loaded.description.event_time
    rows = random_rows(with_columns(SCHEMA), 3).select(["user", "item", "visits.item"])
    assert loaded.predict(rows)["click"].shape == (3,)
    assert "visits.age_seconds" in predictor(READERS["encoder"], with_columns(SCHEMA))[1].names


@pytest.mark.soak  # an export of a model of such times is tried above, and one of a run elsewhere
def test_a_run_with_absolute_times_is_exported(tmp_path: Path) -> None:
    """From the columns of a log to the description of an export."""
    from exfm.serving.export import Form, export
    from tests.training.logs import experiment_dict, load, make_log, write_log

    log = make_log(200)
    times = log["event_time"].cast(pa.timestamp("us")).to_pylist()
    pairs = zip(times, log["history"].to_pylist(), strict=True)
    at = [[time - timedelta(hours=1 + back) for back in range(len(events))][::-1] for time, events in pairs]
    log = log.append_column("history_at", pa.array(at, pa.list_(pa.timestamp("ms"))))
    config = experiment_dict(write_log(tmp_path / "log", log), str(tmp_path / "run"))
    sequence = next(column for column in config["stream"]["source"]["features"] if column["name"] == "history")
    sequence["times"] = {"column": "history_at", "holds": "time"}
    config["models"] = {
        "vm": {"backbone": {"name": "mlp"}, "sequence_encoder": TIMED, "embedding_dim": 4, "batch_size": 64}
    }
    experiment = load(tmp_path, config)
    exfm.run(experiment)
    description = export(experiment, "vm", str(tmp_path / "out"), Form(compiled=False))
    assert description.columns["history_at"] == "list of timestamp"
    assert description.columns["event_time"] == "timestamp" and description.event_time == "event_time"
    assert "history.age_seconds" in [spec.name for spec in description.inputs]
