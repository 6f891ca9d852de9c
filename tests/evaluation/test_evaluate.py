"""Evaluation over prediction tables in memory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from exfm.evaluation.evaluate import ControlComparison, ExperimentView, evaluate
from exfm.interfaces.data_source import Window

DAY_US = 86_400_000_000
WINDOWS = tuple(Window(index, index * DAY_US, (index + 1) * DAY_US) for index in range(4))


class Tables:
    """Implements PredictionReader over tables in memory."""

    def __init__(self, tables: dict[str, dict[int, pa.Table]], first_kept: dict[str, int] | None = None) -> None:
        self.tables = tables
        self.first_kept = first_kept or {}

    def windows(self, model: str) -> Sequence[Window]:
        return [window for window in self._all(model) if window.index >= self.first_kept.get(model, 0)]

    def let_go(self, model: str) -> Sequence[Window]:
        return [window for window in self._all(model) if window.index < self.first_kept.get(model, 0)]

    def _all(self, model: str) -> Sequence[Window]:
        return [window for window in WINDOWS if window.index in self.tables[model]]

    def examples(self, model: str, window: Window) -> int:
        return self.tables[model][window.index].num_rows

    def predictions(self, model: str, window: Window) -> pa.Table:
        assert window.index >= self.first_kept.get(model, 0)
        return self.tables[model][window.index]


def stream(noise: float, seed: int, rows: int = 500, oracle: bool = False) -> dict[int, pa.Table]:
    """Simulates four windows, the same at every call, and the predictions of a model with that much noise."""
    world, errors = np.random.default_rng(0), np.random.default_rng(seed)
    tables = {}
    for window in WINDOWS:
        logit = world.normal(-1, 1.2, rows)
        truth = 1 / (1 + np.exp(-logit))
        label = (world.random(rows) < truth).astype(np.float32)
        columns: dict[str, Any] = {
            "example_id": np.arange(rows) + window.index * rows,
            "group": world.integers(0, 60, rows),
            "prediction_click": (1 / (1 + np.exp(-logit - errors.normal(0, noise, rows)))).astype(np.float32),
            "label_click": np.where(world.random(rows) < 0.1, np.nan, label).astype(np.float32),
        }
        if oracle:
            columns["oracle_click"] = truth.astype(np.float32)
        tables[window.index] = pa.table(columns)
    return tables


def view(*models: str, **options: Any) -> ExperimentView:
    return ExperimentView(models=tuple((model, ("click",)) for model in models), **options)


def column(tables: dict[int, pa.Table], name: str, windows: Sequence[int]) -> np.ndarray:
    return np.concatenate([tables[index].column(name).to_numpy() for index in windows])


def test_overall_figures_agree_with_scikit_learn_on_the_rows_that_count() -> None:
    tables = stream(0.5, 1, oracle=True)
    figures = evaluate(Tables({"vm": tables}), view("vm", skip=0.25))["models"]["vm"]["tasks"]["click"]

    label = column(tables, "label_click", [1, 2, 3])
    labelled = ~np.isnan(label)
    label, prediction, truth, group = (
        column(tables, name, [1, 2, 3])[labelled]
        for name in ("label_click", "prediction_click", "oracle_click", "group")
    )
    base_rate = float(label.mean(dtype=float))
    entropy = -base_rate * np.log(base_rate) - (1 - base_rate) * np.log(1 - base_rate)
    assert figures["examples"] == labelled.sum()
    assert figures["base_rate"] == pytest.approx(base_rate)
    assert figures["log_loss"] == pytest.approx(log_loss(label, prediction.astype(float)))
    assert figures["ne"] == pytest.approx(log_loss(label, prediction.astype(float)) / entropy)
    assert figures["bayes_ne"] == pytest.approx(log_loss(label, truth.astype(float)) / entropy)
    assert figures["ne_above_bayes"] == pytest.approx(figures["ne"] - figures["bayes_ne"])
    assert figures["ne_above_bayes"] > 0
    assert figures["auc_error_bound"] < 5e-5
    assert figures["auc"] == pytest.approx(roc_auc_score(label, prediction), abs=figures["auc_error_bound"])
    assert figures["calibration"] == pytest.approx(prediction.sum() / label.sum())
    aucs = {g: (roc_auc_score(label[group == g], prediction[group == g]), (group == g).sum()) for g in set(group)}
    assert figures["gauc"] == pytest.approx(sum(a * n for a, n in aucs.values()) / labelled.sum())


def test_recalibration_and_recall_cover_the_rows_that_count() -> None:
    tables = stream(0.5, 1)
    figures = evaluate(Tables({"vm": tables}), view("vm", skip=0.25, recall_at=(3, 1000)))["models"]["vm"]["tasks"]
    label, prediction, group = (
        column(tables, name, [1, 2, 3]) for name in ("label_click", "prediction_click", "group")
    )
    recalls = []
    for user in range(60):
        rows = np.flatnonzero((group == user) & ~np.isnan(label))
        top = rows[np.argsort(-prediction[rows])[:3]]
        recalls.append(label[top].sum() / label[rows].sum())
    assert figures["click"]["recall_at"] == {"3": pytest.approx(np.mean(recalls)), "1000": None}
    examples = int((~np.isnan(label)).sum())
    assert figures["click"]["recall_counts"] == {
        "3": {"groups": 60, "examples": examples}, "1000": {"groups": 0, "examples": 0}
    }  # fmt: skip
    # The noise spreads the predictions too far apart, and a scale below 1 undoes it.
    assert 0 < figures["click"]["recalibration"]["scale"] < 1
    assert figures["click"]["ne_recalibrated"] < figures["click"]["ne"]

    plain = evaluate(Tables({"vm": tables}), view("vm", skip=0.25))["models"]["vm"]["tasks"]["click"]
    assert not {"recall_at", "recall_counts"} & set(plain)
    assert plain["gauc"] == figures["click"]["gauc"]


def test_skipped_windows_are_still_listed() -> None:
    tables = stream(0.5, 1)
    all_of_it = evaluate(Tables({"vm": tables}), view("vm"))["models"]["vm"]["tasks"]["click"]
    most_of_it = evaluate(Tables({"vm": tables}), view("vm", skip=0.5))["models"]["vm"]["tasks"]["click"]
    assert most_of_it["windows"] == all_of_it["windows"]
    assert [entry["start"] for entry in all_of_it["windows"]] == [
        "1970-01-01T00:00:00Z", "1970-01-02T00:00:00Z", "1970-01-03T00:00:00Z", "1970-01-04T00:00:00Z"
    ]  # fmt: skip
    assert most_of_it["examples"] == sum(entry["examples"] for entry in all_of_it["windows"][2:])
    assert all("bayes_ne" not in entry for entry in all_of_it["windows"])
    first = ~np.isnan(tables[0].column("label_click").to_numpy())
    assert all_of_it["windows"][0]["auc"] == pytest.approx(
        roc_auc_score(*(tables[0].column(name).to_numpy()[first] for name in ("label_click", "prediction_click")))
    )


def test_a_late_model_does_not_move_the_stretch_that_is_scored() -> None:
    late = {index: table for index, table in stream(0.5, 1).items() if index >= 2}
    result = evaluate(Tables({"fm": stream(0.2, 2), "vm": late}), view("fm", "vm", skip=0.75))["models"]
    assert result["fm"]["tasks"]["click"]["examples"] == result["vm"]["tasks"]["click"]["examples"]


def test_removed_windows_are_left_out_for_every_model_and_count_in_the_positions() -> None:
    tables = {"fm": stream(0.2, 2), "vm": stream(0.5, 1)}
    whole = evaluate(Tables(tables), view("fm", "vm", skip=0.5))["models"]
    # The first half is skipped, so a window of it that is gone changes nothing of the overall figures.
    half = evaluate(Tables(tables, {"fm": 1}), view("fm", "vm", skip=0.5))["models"]
    assert half["vm"] == whole["vm"]
    assert half["fm"]["tasks"]["click"]["auc"] == whole["fm"]["tasks"]["click"]["auc"]
    assert half["fm"]["tasks"]["click"]["windows"] == whole["fm"]["tasks"]["click"]["windows"][1:]
    late = evaluate(Tables(tables, {"fm": 3}), view("fm", "vm", skip=0.5))["models"]
    last = evaluate(Tables(tables), view("fm", "vm", skip=0.75))["models"]
    for model in ("fm", "vm"):
        assert late[model]["tasks"]["click"]["ne"] == last[model]["tasks"]["click"]["ne"]


def test_the_last_window_is_never_skipped() -> None:
    only = {0: stream(0.5, 1)[0]}
    assert evaluate(Tables({"vm": only}), view("vm", skip=0.9))["models"]["vm"]["tasks"]["click"]["examples"] > 0


def losses_percent(tables: dict[str, dict[int, pa.Table]], keep: np.ndarray) -> dict[str, float]:
    """Computes each model's log loss on the kept ids, without the code under test."""
    result = {}
    for model, by_window in tables.items():
        ids, label, p = (
            column(by_window, name, sorted(by_window)) for name in ("example_id", "label_click", "prediction_click")
        )
        rows = np.isin(ids, keep) & ~np.isnan(label)
        result[model] = log_loss(label[rows], p[rows].astype(float))
    return result


def test_gain_and_gain_share_compare_the_same_examples_in_any_order() -> None:
    tables = {"fm": stream(0.1, 1), "vm": stream(0.6, 2), "control": stream(0.9, 3)}
    # The control's rows come in another order, and the teacher lacks a third of the rows and the last window.
    shuffle = np.random.default_rng(9).permutation(500)
    tables["control"] = {index: table.take(shuffle) for index, table in tables["control"].items()}
    some = np.arange(500) % 3 > 0
    tables["fm"] = {index: table.filter(pa.array(some)) for index, table in tables["fm"].items() if index < 3}

    experiment = view("fm", "vm", "control", control_comparisons=(ControlComparison("vm", "control", ("fm",)),))
    (gain,) = evaluate(Tables(tables), experiment)["gains"]

    whole = losses_percent({name: tables[name] for name in ("vm", "control")}, np.arange(2000))
    assert gain["ne_gain_percent"] == pytest.approx(100 * (whole["control"] - whole["vm"]) / whole["control"])
    assert gain["interval95"][0] < gain["ne_gain_percent"] < gain["interval95"][1]
    shared = losses_percent(tables, column(tables["fm"], "example_id", [0, 1, 2]))
    ratio = (shared["control"] - shared["vm"]) / (shared["control"] - shared["fm"])
    assert gain["gain_share"] == gain["transfer_ratio"] == pytest.approx(ratio)
    assert gain["teacher_ne_gain_percent"] == pytest.approx(
        100 * (shared["control"] - shared["fm"]) / shared["control"]
    )
    assert 0 < ratio < 1


def test_one_entry_for_each_teacher_and_none_for_a_task_it_lacks() -> None:
    tables = {"fm": stream(0.1, 1), "domain": stream(0.2, 4), "vm": stream(0.6, 2), "control": stream(0.9, 3)}
    experiment = view(
        "fm", "domain", "vm", "control", control_comparisons=(ControlComparison("vm", "control", ("fm", "domain")),)
    )
    gains = evaluate(Tables(tables), experiment)["gains"]
    assert [gain["teacher"] for gain in gains] == ["fm", "domain"]
    assert gains[0]["interval95"] == gains[1]["interval95"]

    other = ExperimentView(
        models=(("fm", ()), ("vm", ("click",)), ("control", ("click",))),
        control_comparisons=(ControlComparison("vm", "control", ("fm",)),),
    )
    (alone,) = evaluate(Tables(tables), other)["gains"]
    assert (alone["teacher"], alone["gain_share"]) == (None, None)
    assert alone["ne_gain_percent"] == gains[0]["ne_gain_percent"]


def test_a_teacher_from_elsewhere_is_compared_as_a_model_is() -> None:
    tables = {"fm": stream(0.1, 1), "vm": stream(0.6, 2), "control": stream(0.9, 3)}
    some = np.arange(500) % 3 > 0
    for index, table in tables["vm"].items():
        probability = tables["fm"][index].column("prediction_click").to_numpy()
        for name, values in (
            ("a/click", np.where(some, probability, np.nan)),
            ("a_b/click", probability),
            ("a/b", 0.5),
        ):
            values = np.broadcast_to(np.asarray(values, np.float32), 500)
            table = table.append_column(f"teacher_{name}", pa.array(values, from_pandas=True))
        tables["vm"][index] = table
    tables["fm"] = {index: table.filter(pa.array(some)) for index, table in tables["fm"].items()}
    elsewhere = (("a", ("click", "b")), ("a_b", ("click",)), ("gone", ("click",)))
    experiment = view(
        "fm", "vm", "control", control_comparisons=(ControlComparison("vm", "control", ("fm",), elsewhere),)
    )
    fm, same, whole, gone = evaluate(Tables(tables), experiment)["gains"]
    assert [entry.pop("teacher") for entry in (fm, same, whole, gone)] == ["fm", "a", "a_b", "gone"]
    assert fm == same and fm["gain_share"] > 0
    assert whole["ne_gain_percent"] == fm["ne_gain_percent"]
    assert whole["teacher_ne_gain_percent"] != fm["teacher_ne_gain_percent"]
    unknown = ("teacher_ne_gain_percent", "teacher_interval95", "gain_share")
    assert [gone[key] for key in unknown] == [None] * 3, "files of before have no column of the teacher's"
    assert gone["ne_gain_percent"] == fm["ne_gain_percent"]


def test_equal_models_gain_nothing_and_skipping_applies_to_gains() -> None:
    tables = {"vm": stream(0.5, 1), "control": stream(0.5, 1)}
    experiment = view("vm", "control", skip=0.5, control_comparisons=(ControlComparison("vm", "control"),))
    result = evaluate(Tables(tables), experiment)
    (gain,) = result["gains"]
    assert (gain["ne_gain_percent"], gain["interval95"]) == (0, [0, 0])
    assert gain["examples"] == result["models"]["vm"]["tasks"]["click"]["examples"]


def empty_or_one_class(rows: int) -> dict[int, pa.Table]:
    floats = pa.array(np.full(rows, 0.25, np.float32))
    ids = pa.array(np.arange(rows))
    columns = {"example_id": ids, "group": ids, "prediction_click": floats, "oracle_click": floats}
    return {0: pa.table(columns | {"label_click": pa.array(np.zeros(rows, np.float32))})}


@pytest.mark.parametrize("tables", [{}, empty_or_one_class(0), empty_or_one_class(3)], ids=["none", "empty", "one"])
def test_figures_without_a_meaning_are_null_in_strict_json(tables: dict[int, pa.Table]) -> None:
    experiment = view("vm", "control", control_comparisons=(ControlComparison("vm", "control", ("control",)),))
    result = evaluate(Tables({"vm": tables, "control": tables}), experiment)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    figures = result["models"]["vm"]["tasks"]["click"]
    assert (figures["ne"], figures["auc"], figures["gauc"]) == (None, None, None)
    assert (figures["ne_recalibrated"], figures["recalibration"]) == (None, None)
    assert (figures["log_loss"] is None) == (figures["examples"] == 0)
    (gain,) = result["gains"]
    assert (gain["ne_gain_percent"], gain["interval95"], gain["gain_share"]) == (None, None, None)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -0.1, 1.5])
def test_a_prediction_that_is_no_probability_names_the_model_and_the_window(wrong: float) -> None:
    tables = stream(0.5, 1)
    predictions = tables[2].column("prediction_click").to_numpy().copy()
    predictions[np.flatnonzero(~np.isnan(tables[2].column("label_click").to_numpy()))[3]] = wrong
    tables[2] = tables[2].set_column(2, "prediction_click", pa.array(predictions))
    with pytest.raises(ValueError, match=r"model 'vm', task 'click', window 1970-01-03.*1 of \d+ predictions"):
        evaluate(Tables({"vm": tables}), view("vm"))
