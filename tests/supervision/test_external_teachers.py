"""External teachers: their files are checked, joined by example id in any order, and named in the results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss

import exfm
from exfm.config.experiment import ExternalTeacher
from exfm.config.external_files import ExternalFiles
from exfm.supervision.external import ExternalSupervision
from tests.training.logs import experiment_dict, load, make_log, predictions, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log(900))


def vendor_table(seed: int = 0) -> pa.Table:
    """Predicts two thirds of the log's examples, shuffled, as probabilities and as logits."""
    random = np.random.default_rng(seed)
    click = make_log(900).column("click").to_numpy()
    logit = np.where(click == 1, 2.0, -2.0) + random.normal(size=click.size)
    picked = random.permutation(click.size)[:600]
    ids = make_log(900).column("example_id").to_numpy()[picked]
    return pa.table({"id": ids, "p": 1 / (1 + np.exp(-logit[picked])), "z": logit[picked].astype(np.float32)})


def write_vendor(folder: Path, table: pa.Table) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        pq.write_table(table.slice(number * 200, 200), folder / f"part-{number}.parquet", row_group_size=75)
    return str(folder)


def vendor_config(log: str, run_dir: Path, path: str, column: str = "p", kind: str = "probability") -> dict[str, Any]:
    """Configures a VM with two teachers, the FM and the vendor."""
    config = experiment_dict(log, str(run_dir))
    config["teachers"] = {
        "vendor": {"path": path, "example_id": "id", "predictions": {"click": {"column": column, "kind": kind}}}
    }
    config["models"]["vm"]["transfer"].append({"name": "direct", "teacher": "vendor"})
    return config


def test_a_run_learns_from_a_vendors_files(log: str, tmp_path: Path) -> None:
    path = write_vendor(tmp_path / "vendor", vendor_table())
    results = exfm.run(load(tmp_path, vendor_config(log, tmp_path / "a", path)))
    coverage = results["supervision"]["vendor"]["vm"]
    assert coverage["hit_rate"] == 600 / 900
    assert coverage["age_s"] is None
    assert sum(coverage["age_histogram"]["counts"]) == 0
    gains = {gain["teacher"]: gain for gain in results["gains"]}
    assert set(gains) == {"fm", "vendor"}
    assert gains["vendor"]["ne_gain_percent"] == gains["fm"]["ne_gain_percent"]
    _check_gain(gains["vendor"], str(tmp_path / "a"))
    assert "vendor itself gains +" in " ".join((tmp_path / "a" / "report.html").read_text().split())
    # the same teacher as logits, in a single file, in another order
    table = vendor_table()
    (tmp_path / "single").mkdir()
    pq.write_table(table.take(np.random.default_rng(1).permutation(600)), tmp_path / "single" / "all.parquet")
    logits = vendor_config(log, tmp_path / "b", str(tmp_path / "single/*.parquet"), "z", "logit")
    again = exfm.run(load(tmp_path, logits))
    ne = [run["models"]["vm"]["tasks"]["click"]["ne"] for run in (results, again)]
    assert ne[0] == pytest.approx(ne[1], abs=1e-4)
    assert again["models"]["vm.control"] | {"train_examples_per_second": 0} == (
        results["models"]["vm.control"] | {"train_examples_per_second": 0}
    )


def _check_gain(gain: dict[str, Any], run_dir: str) -> None:
    """Computes the teacher's gain and the share of it from its files and the predictions of model and control."""
    vendor = {row["id"]: row["p"] for row in vendor_table().to_pylist()}
    rows: list[tuple[float, float, float, float]] = []
    files = [predictions(run_dir, name) for name in ("vm", "vm.control")]
    for window in sorted(files[0])[2:]:  # evaluation.skip leaves two of six days out
        for model, control in zip(*(by_window[window].to_pylist() for by_window in files), strict=True):
            expected = vendor.get(model["example_id"])
            stored = model["teacher_vendor/click"]
            assert (stored is None) == (expected is None) and "teacher_vendor/click" not in control
            if expected is not None:
                assert stored == pytest.approx(expected, rel=1e-6)
                label = model["label_click"]
                rows.append((label, expected, model["prediction_click"], control["prediction_click"]))
    labels, *columns = np.array(rows).T
    teacher, student, control = (log_loss(labels, column) for column in columns)
    assert gain["teacher_ne_gain_percent"] == pytest.approx(100 * (1 - teacher / control), rel=1e-5)
    assert gain["teacher_interval95"][0] > 0, "the vendor knows the labels"
    assert gain["gain_share"] == pytest.approx((control - student) / (control - teacher), rel=1e-5)


def test_a_model_may_have_no_other_teacher(log: str, tmp_path: Path) -> None:
    path = write_vendor(tmp_path / "vendor", vendor_table())
    config = vendor_config(log, tmp_path / "run", path)
    del config["models"]["fm"]
    config["models"]["vm"]["transfer"] = [{"name": "auxiliary_head", "teacher": "vendor"}]
    results = exfm.run(load(tmp_path, config))
    assert [gain["teacher"] for gain in results["gains"]] == ["vendor"]
    vm, control = (predictions(str(tmp_path / "run"), name)[5] for name in ("vm", "vm.control"))
    assert vm.column("prediction_click") != control.column("prediction_click")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": {"clik": {"column": "p", "kind": "probability"}}}, r"the data has no task 'clik'.*'click'"),
        ({"predictions": {"click": {"column": "prob", "kind": "logit"}}}, r"part-0\.parquet has no column 'prob'"),
        ({"predictions": {"click": {"column": "id", "kind": "logit"}}}, r"'id' must hold floating-point.* not int64"),
        ({"predictions": {"click": {"column": "p", "kind": "odds"}}}, r"kind: 'odds' is not allowed.*probability"),
        ({"predictions": {}}, r"teachers\.vendor\.predictions"),
        (
            {"example_id": "z"},
            r"teachers\.vendor\.example_id: .*column 'z' must hold integers, .*, not float",
        ),
        ({"path": "/nowhere/*.parquet"}, r"teachers\.vendor\.path: there is no Parquet file"),
        ({"path": "nothing://x"}, r"teachers\.vendor\.path: 'nothing://x' cannot be listed"),
    ],
)
def test_mistakes_are_named_before_training(log: str, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = vendor_config(log, tmp_path / "run", write_vendor(tmp_path / "vendor", vendor_table()))
    config["teachers"]["vendor"].update(change)
    with pytest.raises(exfm.ConfigError, match=message):
        load(tmp_path, config)


def test_a_file_that_is_no_parquet_is_named(log: str, tmp_path: Path) -> None:
    path = write_vendor(tmp_path / "vendor", vendor_table())
    (tmp_path / "vendor" / "part-9.parquet").write_text("nothing")
    with pytest.raises(exfm.ConfigError, match=r"part-9\.parquet cannot be read as Parquet"):
        load(tmp_path, vendor_config(log, tmp_path / "run", path))


def test_names_are_unique_and_defined(log: str, tmp_path: Path) -> None:
    config = vendor_config(log, tmp_path / "run", write_vendor(tmp_path / "vendor", vendor_table()))
    config["models"]["vm"]["transfer"][1]["teacher"] = "vendr"
    with pytest.raises(exfm.ConfigError, match=r"no model is called 'vendr'.*Did you mean 'vendor'"):
        load(tmp_path, config)
    config["teachers"]["fm"] = config["teachers"].pop("vendor")
    with pytest.raises(exfm.ConfigError, match=r"teachers\.fm: a model has this name"):
        load(tmp_path, config)


@pytest.mark.parametrize(
    ("column", "row", "value", "message"),
    [
        ("p", 307, 1.5, r"part-1\.parquet, row 107: p: a probability lies between 0 and 1; given: 1\.5"),
        ("p", 400, -0.1, r"part-2\.parquet, row 0: p: .*given: -0\.1"),
        ("z", 5, float("inf"), r"part-0\.parquet, row 5: z: a logit is finite, .*given: inf"),
        ("id", 3, None, r"part-0\.parquet, row 3: id: the example id is missing"),
        ("id", 599, "first", r"part-2\.parquet, row 199: this example id came before"),
    ],
)
def test_values_are_checked_when_they_are_read(
    log: str, tmp_path: Path, column: str, row: int, value: Any, message: str
) -> None:
    table = vendor_table()
    values = table.column(column).to_pylist()
    values[row] = values[0] if value == "first" else value
    changed = table.set_column(table.column_names.index(column), column, pa.array(values))
    column_and_kind = ("z", "logit") if column == "z" else ("p", "probability")
    path = write_vendor(tmp_path / "vendor", changed)
    config = vendor_config(log, tmp_path / "run", path, *column_and_kind)
    with pytest.raises(exfm.ConfigError, match=rf"^teachers\.vendor: .*{message}"):
        exfm.run(load(tmp_path, config))
    assert not (tmp_path / "run" / "predictions").exists()


def test_missing_and_unknown_examples_are_misses(tmp_path: Path) -> None:
    pq.write_table(pa.table({"example_id": [5, 1, 9], "z": pa.array([0.0, None, 88.0])}), tmp_path / "a.parquet")
    config = ExternalTeacher(path=str(tmp_path), predictions={"click": {"column": "z", "kind": "logit"}})
    joined = ExternalSupervision.load(ExternalFiles(config, "teachers.x")).join(
        torch.tensor([9, 1, 2, 5]), torch.zeros(4)
    )
    assert joined.has_row.tolist() == [True, True, False, True]
    assert joined.supervision.hit["click"].tolist() == [True, False, False, True]
    assert joined.supervision.probabilities["click"][[0, 3]].tolist() == [1.0, 0.5]
    assert joined.age_us is None


def taught_by(vendor: pa.Table, log: str, folder: Path) -> dict[str, Any]:
    """Trains a VM with the vendor as its only teacher, and returns the vendor's coverage."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(vendor, folder / "vendor.parquet")
    config = vendor_config(log, folder / "run", str(folder / "vendor.parquet"))
    del config["models"]["fm"]
    config["models"]["vm"] |= {"transfer": [{"name": "direct", "teacher": "vendor"}], "control": False}
    coverage: dict[str, Any] = exfm.run(load(folder, config))["supervision"]["vendor"]["vm"]
    return coverage


def test_a_row_without_a_prediction_is_a_miss(log: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = make_log(900).column("example_id")
    nulls = pa.array([None if row % 3 else 0.4 for row in range(len(ids))], pa.float32())
    third = taught_by(pa.table({"id": ids, "p": nulls}), log, tmp_path / "nulls")
    assert third["hit_rate"] == pytest.approx(1 / 3) and not caplog.records
    assert third["windows"][0]["hit_rate"] == pytest.approx(1 / 3, abs=0.01)
    nan = pa.array(np.full(len(ids), np.nan, np.float32))
    none = taught_by(pa.table({"id": ids, "p": nan}), log, tmp_path / "nan")
    assert none["hit_rate"] == 0 and none["soft_labels"][0]["examples"] == 0
    assert "teachers.vendor: 900 of 900 predictions of 'click' are NaN: misses" in caplog.text


def test_hidden_names_among_the_files_are_left_out(tmp_path: Path) -> None:
    rows = pa.table({"example_id": [1, 2], "p": [0.5, 0.5]})
    for name in ("a", "_temporary/0/b", ".ipynb_checkpoints/a-checkpoint", "_c"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, tmp_path / f"{name}.parquet")
    predictions = {"click": {"column": "p", "kind": "probability"}}
    for path in (str(tmp_path), f"{tmp_path}/**/*.parquet", f"{tmp_path}/*.parquet"):
        config = ExternalTeacher(path=path, predictions=predictions)
        assert ExternalFiles(config, "teachers.x").rows == 2


def test_a_teacher_without_rows_misses_everything(tmp_path: Path) -> None:
    schema = pa.schema({"example_id": pa.int64(), "p": pa.float32()})
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    config = ExternalTeacher(path=str(tmp_path), predictions={"click": {"column": "p", "kind": "probability"}})
    joined = ExternalSupervision.load(ExternalFiles(config, "teachers.x")).join(torch.tensor([1, 2]), torch.zeros(2))
    assert not joined.has_row.any()
    assert not joined.supervision.hit["click"].any()
