"""Labels that are null: not known yet, or never."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

import exfm
import exfm_plugins.backbones
import exfm_plugins.parallel
import exfm_plugins.sources
import exfm_plugins.transfer
from exfm.data.column_types import plain_rows
from exfm.data.decode import decode
from exfm.experiment.run import build_plan
from exfm.interfaces.data_source import Window
from exfm.learning.trainer import Trainer
from exfm.modeling.labels import Labels
from exfm.supervision.late_labels import labels_manifest
from exfm.supervision.store import Store, open_store
from exfm.supervision.vacuum import apply_vacuum, find_vacuum
from exfm.transfer.build import teacher_specs
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, train, write_log

WHOLE = exfm.sources.Shard()


def without_labels(log: pa.Table, name: str, unknown: np.ndarray[Any, Any]) -> pa.Table:
    """Replaces a column's values by nulls where a mask says so."""
    values = pc.if_else(pa.array(unknown), pa.scalar(None, pa.int8()), log.column(name).cast(pa.int8()))
    return log.set_column(log.column_names.index(name), name, values)


def ages_us(log: pa.Table) -> np.ndarray[Any, Any]:
    """Returns the time of each row since the beginning of the log."""
    return log.column("event_time").cast(pa.int64()).to_numpy() - START_US


def small(path: str, run_dir: str) -> dict[str, Any]:
    """A VM on clicks and late purchases, with a teacher."""
    config = experiment_dict(path, run_dir, labels=("click", "buy"))
    config["models"]["vm"]["control"] = False
    config["models"]["fm"] |= {"features": ["user", "item", "price"], "sequence_encoder": None}
    return config


def weights(run_dir: str, model: str, version: int) -> dict[str, torch.Tensor]:
    """Reads the weights of a snapshot."""
    store = Store(run_dir, {})
    snapshot = store.snapshots.get(model, version)
    return store.snapshots.load_whole(snapshot.weights)


def labelled(run_dir: str, model: str, task: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Reads all predictions and labels of a task, as an evaluation reads them."""
    store = Store(run_dir, {})
    tables = [store.predictions(model, window) for window in store.windows(model)]
    table = pa.concat_tables(tables)
    return table.column(f"prediction_{task}").to_numpy(), table.column(f"label_{task}").to_numpy()


# ---- what is learned -----------------------------------------------------------------------------------------------


def test_what_is_in_rows_without_a_label_moves_no_weight(tmp_path: Path) -> None:
    log = make_log(600)
    unknown = np.random.default_rng(1).random(log.num_rows) < 0.3
    logs = [without_labels(log, "click", unknown)]
    # The same rows with another user and item, where nothing is learned from them.
    strangers = pa.array(np.where(unknown, 39 - log.column("user").to_numpy(), log.column("user").to_numpy()))
    logs.append(logs[0].set_column(logs[0].column_names.index("user"), "user", strangers))
    learned = []
    for number, table in enumerate(logs):
        folder = tmp_path / str(number)
        config = experiment_dict(write_log(folder / "log", table), str(folder / "run"))
        config["models"] = {"vm": {**config["models"]["vm"], "transfer": [], "control": False}}
        train(load(folder, config))
        learned.append(weights(str(folder / "run"), "vm", 5))
    for name, value in learned[0].items():
        assert torch.equal(learned[1][name], value), name


def test_the_loss_is_the_mean_over_the_known_labels() -> None:
    torch.manual_seed(0)
    logit_B, label_B = torch.randn(6), torch.tensor([1.0, torch.nan, 0.0, torch.nan, 1.0, 0.0])
    labels = Labels.of_tasks({"a": label_B, "b": torch.full((6,), torch.nan), "c": label_B.nan_to_num(1)}, ["a", "b"])
    assert set(labels.values) == {"a"}  # nobody knows a label of b, and nobody asks for c
    is_known = ~label_B.isnan()
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logit_B[is_known], label_B[is_known])
    torch.testing.assert_close(labels.loss("a", logit_B), expected)
    positives, total = labels.counts("a")
    assert (positives, total) == (2, 4)


@pytest.mark.parametrize("strategy", ["student_adapter", "auxiliary_head"])
def test_a_batch_without_any_label_moves_nothing_but_what_the_teacher_teaches(tmp_path: Path, strategy: str) -> None:
    config = small(write_log(tmp_path / "log", make_log(600)), str(tmp_path / "run"))
    config["models"]["vm"]["transfer"] = [{"name": strategy, "teacher": "fm"}]
    experiment = load(tmp_path, config)
    arm = next(arm for arm in experiment.arms if arm.name == "vm")
    trainer = Trainer(arm, experiment.schema, teacher_specs(experiment), build_plan(experiment), 0)
    rows = make_log(64).combine_chunks().to_batches()[0]
    batch = trainer.model.narrow(decode(plain_rows(rows, experiment.schema), experiment.schema))
    soft = {task: torch.full((64,), 0.3) for task in trainer.arm.tasks}
    hit = {task: torch.ones(64, dtype=torch.bool) for task in trainer.arm.tasks}
    taught = trainer.transfer.join({"fm": exfm.transfer.TeacherOutput(soft, hit)})
    learn = ("click",)
    trainer.step(batch, taught, learn)  # so that optimizers have momentum
    heads = {n: p.clone() for n, p in trainer.model.state_dict().items() if n.startswith("heads.")}
    adapters = {n: p.clone() for n, p in trainer.transfer.modules.state_dict().items() if ".adapters." in n}
    blank = {task: torch.full((64,), torch.nan) for task in batch.labels}
    trainer.step(replace(batch, labels=blank), taught, learn)
    for name, before in heads.items():
        assert torch.equal(trainer.model.state_dict()[name], before), name
    for name, before in adapters.items():
        assert torch.equal(trainer.transfer.modules.state_dict()[name], before), name
    assert trainer.learned == {"click"}


def test_a_teacher_supervises_a_task_when_it_has_seen_a_label_and_not_before(tmp_path: Path) -> None:
    log = make_log(900)
    log = without_labels(log, "click", ages_us(log) < 2 * DAY_US)
    config = experiment_dict(write_log(tmp_path / "log", log), str(tmp_path / "run"))
    experiment = load(tmp_path, config)
    train(experiment)
    stored = pq.read_table(tmp_path / "run" / "supervision" / "fm").sort_by("event_time")
    is_known = stored.column("prediction_click").is_valid().to_numpy(zero_copy_only=False)
    first = int(is_known.argmax())
    assert is_known[first:].all() and not is_known[:first].any()
    times = stored.column("event_time").cast(pa.int64()).to_numpy() - START_US
    assert times[first] >= 2 * DAY_US > times[first - 100]


# ---- what is scored ------------------------------------------------------------------------------------------------


def test_figures_leave_out_what_is_not_known_and_say_so(tmp_path: Path) -> None:
    log = make_log(900)
    unknown = np.random.default_rng(2).random(log.num_rows) < 0.25
    config = experiment_dict(write_log(tmp_path / "log", without_labels(log, "click", unknown)), str(tmp_path / "run"))
    config["evaluation"]["skip"] = 0
    results = exfm.run(load(tmp_path, config))
    scores = results["models"]["vm"]["tasks"]["click"]
    assert scores["examples"] == np.count_nonzero(~unknown) and scores["unlabelled"] == np.count_nonzero(unknown)
    assert scores["base_rate"] == pytest.approx(log.column("click").to_numpy()[~unknown].mean())
    assert any(f"vm: {np.count_nonzero(unknown)} of 900 examples have no label of click" in n for n in results["notes"])


def test_a_log_that_grows_day_by_day_gives_the_figures_of_the_whole_log(tmp_path: Path) -> None:
    log, runs = make_log(900), {}
    for kind in ("whole", "daily"):
        runs[kind] = str(tmp_path / kind)
        folder = tmp_path / f"{kind}-log"
        folder.mkdir()
        experiment = small(str(folder), runs[kind])
        for day in range(6 if kind == "whole" else 1, 9):
            # A purchase is known two days after its impression, and null before.
            rows = without_labels(log, "buy", ages_us(log) >= (day - 2) * DAY_US)
            pq.write_table(rows.filter(pa.array(ages_us(log) < day * DAY_US)), folder / "log.parquet")
            if kind == "daily":
                train(load(tmp_path, experiment))
        results = exfm.run(load(tmp_path, experiment))
        assert results["data"]["late_rows"] == 0 and not any("no label" in note for note in results["notes"])
    for model in ("fm", "vm"):
        for task in ("click", "buy"):
            for daily, whole in zip(*(labelled(runs[kind], model, task) for kind in ("daily", "whole")), strict=True):
                assert np.array_equal(daily, whole)
    assert (labelled(runs["daily"], "vm", "buy")[1] == log.column("buy").to_numpy()).all()


def test_labels_that_arrive_in_a_quiet_rest_of_a_window_are_learned(tmp_path: Path) -> None:
    # A first log ends inside a window, in which no row follows, and purchases of two days before are not known yet.
    log, end_us, runs = make_log(900), 3 * DAY_US + DAY_US // 4, {}
    age_us = ages_us(log)
    log = log.filter(pa.array((age_us < end_us) | (age_us >= 4 * DAY_US)))
    for kind in ("whole", "in two"):
        runs[kind] = str(tmp_path / kind)
        folder = tmp_path / f"{kind}-log"
        folder.mkdir()
        experiment = small(str(folder), runs[kind])
        if kind == "in two":
            rows = without_labels(log, "buy", ages_us(log) >= end_us - 2 * DAY_US)
            pq.write_table(rows.filter(pa.array(ages_us(log) < end_us)), folder / "log.parquet")
            train(load(tmp_path, experiment))
        pq.write_table(log, folder / "log.parquet")
        train(load(tmp_path, experiment))
    for model in ("fm", "vm"):
        for task in ("click", "buy"):
            for in_two, whole in zip(*(labelled(runs[kind], model, task) for kind in ("in two", "whole")), strict=True):
                assert np.array_equal(in_two, whole)


def test_a_shuffled_log_that_grows_gives_the_figures_of_the_whole_log(tmp_path: Path) -> None:
    """Negatives of purchases are sampled, too: one that becomes known weighs as many as it stands for."""
    log, runs, read = make_log(600), {}, {}
    order = np.random.default_rng(4).permutation(600)
    for kind in ("whole", "daily"):
        runs[kind] = str(tmp_path / kind)
        folder = tmp_path / f"{kind}-log"
        folder.mkdir()
        experiment = small(str(folder), runs[kind])
        experiment["stream"]["source"]["labels"][1]["sampling_rate"] = 0.5
        for day in range(6 if kind == "whole" else 1, 9):
            rows = without_labels(log, "buy", ages_us(log) >= (day - 2) * DAY_US).take(pa.array(order))
            pq.write_table(rows.filter(pa.array(ages_us(rows) < day * DAY_US)), folder / "log.parquet")
            if kind == "daily":
                train(load(tmp_path, experiment))
        results = exfm.run(load(tmp_path, experiment))
        assert results["data"]["late_rows"] == 0
        read[kind] = results["models"]["vm"]["tasks"]
    for daily, whole in zip(*(labelled(runs[kind], "vm", "buy") for kind in ("daily", "whole")), strict=True):
        assert np.array_equal(daily, whole)
    assert read["daily"] == read["whole"]


class Live(exfm.DataSource):
    """The small log as it is at the time of a read: the newest two days know no purchase. It has no parts."""

    name: ClassVar[str] = "live"
    table: ClassVar[pa.Table]
    days: ClassVar[int] = 0

    class Config(exfm.ComponentConfig):
        """Fields of `live`: none."""

    def schema(self) -> exfm.schema.FeatureSchema:
        return exfm.schema.FeatureSchema(
            features=(exfm.schema.CategoricalFeature(name="user", rows=64),),
            labels=(exfm.schema.Label(name="click"), exfm.schema.Label(name="buy", delay="2d")),
        )

    def time_range(self) -> exfm.sources.TimeRange:
        return exfm.sources.TimeRange(START_US, START_US + self.days * DAY_US)

    def read(self, window: exfm.sources.Window, shard: exfm.sources.Shard = WHOLE) -> Iterator[pa.RecordBatch]:
        rows = without_labels(self.table, "buy", ages_us(self.table) >= (self.days - 2) * DAY_US)
        time = rows.column("event_time").cast(pa.int64()).to_numpy()
        picked = rows.filter(pa.array((time >= window.start_us) & (time < window.end_us)))
        assert shard.count == 1
        yield from picked.to_batches()


def test_labels_that_are_read_again_are_scored_where_no_file_tells_of_them(tmp_path: Path, exfm_registry: Any) -> None:
    exfm_registry.put(Live, exfm_plugins.backbones, exfm_plugins.parallel, exfm_plugins.sources, exfm_plugins.transfer)
    Live.table = make_log(900)
    model = {"backbone": {"name": "mlp"}, "embedding_dim": 4, "batch_size": 64}
    run_dir = str(tmp_path / "run")
    config = {
        "name": "live",
        "run_dir": run_dir,
        "stream": {"source": {"name": "live"}, "window": "1d"},
        "models": {"vm": model},
    }
    for days in range(1, 7):
        Live.days = days
        train(load(tmp_path, config))
    _, label = labelled(run_dir, "vm", "buy")
    age = ages_us(Live.table)
    is_known = age < 4 * DAY_US  # the labels of the last two days have not been read again
    assert np.array_equal(label[is_known], Live.table.column("buy").to_numpy()[is_known])
    assert np.isnan(label[~is_known]).all()


# ---- what is stored ------------------------------------------------------------------------------------------------


@pytest.fixture
def run_with_late_labels(tmp_path: Path) -> tuple[dict[str, Any], Path]:
    """A run whose purchases became known after their windows had been committed."""
    log, folder = make_log(600), tmp_path / "log"
    folder.mkdir()
    config = small(str(folder), str(tmp_path / "run"))
    for day in (4, 6):
        rows = without_labels(log, "buy", ages_us(log) >= (day - 2) * DAY_US)
        pq.write_table(rows.filter(pa.array(ages_us(log) < day * DAY_US)), folder / "log.parquet")
        train(load(tmp_path, config))
    return config, tmp_path


def test_a_reader_of_the_folder_can_score_each_row_alone(run_with_late_labels: tuple[dict[str, Any], Path]) -> None:
    config, folder = run_with_late_labels
    rows = pq.read_table(folder / "run" / "predictions" / "vm").to_pandas()
    scored = rows.dropna(subset=["prediction_buy", "label_buy"]).sort_values("example_id")
    probability, label = labelled(config["run_dir"], "vm", "buy")
    is_known = ~np.isnan(label)
    assert 0 < np.count_nonzero(is_known) < 600
    assert np.array_equal(scored.prediction_buy.to_numpy(), probability[is_known])
    assert np.array_equal(scored.label_buy.to_numpy(), label[is_known])
    assert rows.dropna(subset=["prediction_click", "label_click"]).example_id.is_unique


def first_late(run_dir: str) -> tuple[Window, str]:
    """Returns the first window of the VM with late labels, and their file."""
    store = Store(run_dir, {})
    for window in store.windows("vm"):
        record = store.late_labels.record("vm", window.index)
        if record is not None:
            return window, record.path
    raise AssertionError("there are none")


def test_damaged_late_labels_are_removed_and_read_again(
    run_with_late_labels: tuple[dict[str, Any], Path], exfm_cli: Any
) -> None:
    config, folder = run_with_late_labels
    run_dir = config["run_dir"]
    before = labelled(run_dir, "vm", "buy")
    window, path = first_late(run_dir)
    (folder / "run" / path).write_bytes(b"not parquet")
    with pytest.raises(exfm.RunError, match="exfm repair"):
        Store(run_dir, {}).predictions("vm", window)
    said = exfm_cli("repair", run_dir)
    assert path in said.out and said.status == 0
    assert not (folder / "run" / labels_manifest("vm", window.index)).exists()
    train(load(folder, config))
    assert np.array_equal(before[1], labelled(run_dir, "vm", "buy")[1], equal_nan=True)


def test_a_vacuum_removes_late_labels_with_the_predictions(run_with_late_labels: tuple[dict[str, Any], Path]) -> None:
    config, folder = run_with_late_labels
    config["models"]["vm"]["keep"] = {"predictions": 2}
    log = folder / "log" / "log.parquet"
    pq.write_table(without_labels(make_log(600), "buy", np.zeros(600, bool)), log)
    train(load(folder, config))
    files = {path.name for path in (folder / "run" / "predictions" / "vm").iterdir()}
    assert {name.split("-")[1] for name in files if "labels" in name} == {f"{window:06d}" for window in range(2, 6)}
    store = open_store(load(folder, config))
    apply_vacuum(store, find_vacuum(store), grace_s=0)
    left = {path.name for path in (folder / "run" / "predictions" / "vm").iterdir()}
    assert {name.split("-")[1] for name in left} == {"000004", "000005"}
    assert find_vacuum(store).is_empty
