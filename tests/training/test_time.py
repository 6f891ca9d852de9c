"""Time is enforced: late labels are learned from when they are known, delayed supervision comes from old snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import exfm
from tests.training.logs import DAY_US, START_US, experiment_dict, load, make_log, predictions, supervision, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_log(tmp_path_factory.mktemp("log"), make_log())


def run(log: str, folder: Path, **fm: Any) -> tuple[dict[str, Any], str]:
    run_dir = str(folder / "run")
    config = experiment_dict(log, run_dir, labels=("click", "buy"))
    config["models"]["fm"].update(fm)
    return exfm.run(load(folder, config)), run_dir


@pytest.fixture(scope="module")
def fresh(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Results and folder of a run whose supervision comes at once."""
    return run(log, tmp_path_factory.mktemp("fresh"))


@pytest.fixture(scope="module")
def delayed(log: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Results and folder of a run whose supervision comes a day later."""
    return run(log, tmp_path_factory.mktemp("delayed"), supervision={"delay": "1d"})


def equal(before: str, after: str, model: str, task: str) -> list[bool]:
    """Window by window, whether two runs predicted the same bits."""
    old, new = predictions(before, model), predictions(after, model)
    return [old[w].column(f"prediction_{task}") == new[w].column(f"prediction_{task}") for w in sorted(old)]


def test_a_late_label_is_used_after_its_delay_and_not_before(fresh: tuple[dict[str, Any], str], tmp_path: Path) -> None:
    table = make_log()
    day = (table.column("event_time").cast(pa.int64()).to_numpy() - START_US) // DAY_US
    buy = table.column("buy").to_numpy().copy()
    buy[day == 2] = 1 - buy[day == 2]
    changed = table.set_column(table.column_names.index("buy"), "buy", pa.array(buy))
    _, before = fresh
    _, after = run(write_log(tmp_path / "log", changed), tmp_path)
    for model in ("fm", "vm", "vm.control"):
        # day 2's purchases are known on day 4 and have been learned from when day 5 begins
        assert equal(before, after, model, "buy") == [True] * 5 + [False]
        assert equal(before, after, model, "click") == [True] * 5 + [False]


def test_late_labels_are_learned(fresh: tuple[dict[str, Any], str]) -> None:
    results, _ = fresh
    windows = results["models"]["fm"]["tasks"]["buy"]["windows"]
    # nothing is known on the first three days, then the base rate and more
    assert windows[-1]["ne"] < 0.9 * windows[0]["ne"]


def test_delayed_supervision_comes_from_a_snapshot_that_is_old_enough(delayed: tuple[dict[str, Any], str]) -> None:
    results, run_dir = delayed
    for window, rows in supervision(run_dir, "fm").items():
        if window < 2:
            assert rows.num_rows == 0
            continue
        assert set(rows.column("snapshot").to_pylist()) == {window - 2}
        age = rows.column("event_time").to_numpy() - rows.column("watermark").to_numpy()
        assert age.min() >= np.timedelta64(1, "D")
        assert rows.column("example_id") == predictions(run_dir, "vm")[window].column("example_id")
        assert rows.column("prediction_click") != predictions(run_dir, "fm")[window].column("prediction_click")
    coverage = results["supervision"]["fm"]["vm"]
    assert 0.5 < coverage["hit_rate"] < 0.8
    assert coverage["age_s"] > 86_400


def test_without_supervision_a_model_is_its_control(delayed: tuple[dict[str, Any], str]) -> None:
    _, run_dir = delayed
    vm, control = predictions(run_dir, "vm"), predictions(run_dir, "vm.control")
    same = [vm[w].column("prediction_click") == control[w].column("prediction_click") for w in range(6)]
    assert same[:2] == [True, True]
    assert not same[3]


def test_the_labeller_labels_each_example_of_its_students_once(log: str, tmp_path: Path) -> None:
    config = experiment_dict(log, str(tmp_path / "run"))
    config["models"]["fm"]["supervision"] = {"delay": "1d"}
    vm = {key: value for key, value in config["models"]["vm"].items() if key != "control"}
    config["models"] = {
        "fm": config["models"]["fm"],
        "one": {**vm, "where": {"user": {"bucket": [0, 1], "of": 3}}},
        "two": {**vm, "where": {"user": {"bucket": [1, 2], "of": 4}}},
    }
    results = exfm.run(load(tmp_path, config))
    rows = pa.concat_tables(supervision(str(tmp_path / "run"), "fm").values()).column("example_id")
    served = [predictions(str(tmp_path / "run"), name) for name in ("one", "two")]
    expected = {
        i for model in served for w, rows_ in model.items() if w >= 2 for i in rows_.column("example_id").to_pylist()
    }
    assert sorted(rows.to_pylist()) == sorted(expected)
    assert results["supervision"]["fm"]["one"]["hit_rate"] > 0.5


def test_a_stopped_run_with_a_labeller_resumes_to_the_same_predictions(
    delayed: tuple[dict[str, Any], str], log: str, tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(progress: Any) -> None:
        if progress.window.index == 3:
            raise StoppedError

    config = experiment_dict(log, str(tmp_path / "run"), labels=("click", "buy"))
    config["models"]["fm"]["supervision"] = {"delay": "1d"}
    with pytest.raises(StoppedError):
        exfm.run(load(tmp_path, config), stop)
    exfm.run(load(tmp_path, config))
    for model in ("fm", "vm", "vm.control"):
        assert all(equal(delayed[1], str(tmp_path / "run"), model, "buy"))


def test_windows_without_rows_leave_no_trace(tmp_path: Path) -> None:
    table = make_log()
    day = (table.column("event_time").cast(pa.int64()).to_numpy() - START_US) // DAY_US
    path = write_log(tmp_path / "log", table.filter(pa.array((day != 1) & (day != 3))))
    results = exfm.run(load(tmp_path, experiment_dict(path, str(tmp_path / "run"))))
    assert [w["window"] for w in results["models"]["vm"]["tasks"]["click"]["windows"]] == [0, 2, 4, 5]


def test_bad_rows_stop_the_run_or_are_counted(tmp_path: Path) -> None:
    table = make_log()
    price = table.column("price").to_numpy().copy()
    price[[10, 700, 701]] = np.nan
    changed = table.set_column(table.column_names.index("price"), "price", pa.array(price))
    path = write_log(tmp_path / "log", changed)
    config = experiment_dict(path, str(tmp_path / "run"))
    with pytest.raises(exfm.ConfigError, match=r"part-0\.parquet, row 10: price: .*NaN"):
        exfm.run(load(tmp_path, config))
    results = exfm.run(load(tmp_path, config, "stream.on_bad_row=skip", f"run_dir={tmp_path}/skip"))
    assert results["data"]["skipped_rows"] == 3
    assert results["models"]["fm"]["examples"] == table.num_rows - 3
