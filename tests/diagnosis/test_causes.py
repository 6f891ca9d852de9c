"""Causes that are planted in simulated predictions are named."""

from __future__ import annotations

from typing import Any

import pytest

from tests.diagnosis.simulated import diagnosed, measured, simulate

PLANTS: dict[str, dict[str, Any]] = {
    "pays": {},
    "no_headroom": {"teacher": lambda logit, rng: logit + rng.normal(0, 0.1, logit.size), "knows": 0.0},
    "biased_teacher": {"teacher": lambda logit, rng: logit + 1, "moved": -0.3},
    "noisy_teacher": {"teacher": lambda logit, rng: logit + rng.normal(0, 2.5, logit.size), "moved": -0.3},
    "stale_teacher": {
        "teacher": lambda logit, rng: logit + rng.normal(0, 0.8, logit.size),
        "fresh": lambda logit, rng: logit,
        "moved": 0.0,
    },
    "low_coverage": {"covered": 0.1, "moved": 0.0},
    "scarce_traffic": {"rows": 200},
    "small_student": {"sees": 0.05, "moved": 0.0},
    "unclear": {"moved": 0.0},
}


@pytest.mark.parametrize("cause", PLANTS)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_cause_is_named(cause: str, seed: int) -> None:
    verdict = diagnosed(simulate(**PLANTS[cause], seed=seed))["verdict"]
    assert verdict["cause"] == cause
    assert verdict["words"] and verdict["figures"]


@pytest.mark.parametrize(
    ("scale", "words", "rate"), [(0.4, "too low", "0.001; 0.004"), (1.6, "too high", "0.001; 0.00025")]
)
def test_a_control_whose_spread_is_wrong_has_wrong_rates(scale: float, words: str, rate: str) -> None:
    entry = diagnosed(simulate(control=lambda logit, rng: scale * (logit + 1.5) - 1.5))
    assert entry["verdict"]["cause"] == "wrong_rate"
    assert words in entry["verdict"]["words"]
    assert f"models.vm.optimizer.dense.lr: now {rate}" in entry["verdict"]["settings"][0]


def test_a_model_that_is_worse_than_the_base_rate_is_in_trouble() -> None:
    entry = diagnosed(simulate(control=lambda logit, rng: rng.normal(-1.5, 2, logit.size)))
    assert entry["verdict"]["cause"] == "wrong_rate"
    assert "base rate" in entry["verdict"]["words"]


@pytest.mark.parametrize(("scale", "kind"), [(3.0, "too far apart"), (0.3, "too close together"), (1.0, "level")])
def test_the_kind_of_bias_is_said(scale: float, kind: str) -> None:
    entry = diagnosed(simulate(teacher=lambda logit, rng: scale * (logit + 1.5) - 1.5 + (scale == 1), moved=-0.3))
    assert entry["verdict"]["cause"] == "biased_teacher"
    assert kind in entry["verdict"]["words"]


def test_causes_after_the_main_one_are_named_too() -> None:
    verdict = diagnosed(simulate(teacher=lambda logit, rng: logit + 1))["verdict"]
    assert (verdict["cause"], verdict["also"]) == ("pays", ["biased_teacher"])


LOOKUPS = (
    {"model": "newest", "inputs": ["latest_state"], "gain_share": 0.2},
    {"model": "pair", "inputs": ["pair_embedding"], "gain_share": 0.9},
)


@pytest.mark.parametrize(("moved", "cause"), [(0.0, "needs_lookup"), (0.2, "pays")])
def test_a_lead_that_only_a_lookup_carries_is_named(moved: float, cause: str) -> None:
    entry = diagnosed(simulate(moved=moved), LOOKUPS)
    verdict, share = entry["verdict"], entry["gain_share"]
    assert verdict["cause"] == cause and "needs_lookup" in [verdict["cause"], *verdict["also"]]
    assert (
        f"90% of it with pair_embedding (pair), and at most {share:.0%} without. latest_state (newest): 20%."
        in verdict["words"]
    )
    assert verdict["figures"]["looked_up_share"] == 0.9 and share < 0.5
    if cause == "needs_lookup":
        assert verdict["settings"] == [
            "models.vm.inputs: now none; [{name: pair_embedding, teacher: fm}], as pair has, at its cost when serving"
        ]


@pytest.mark.parametrize(("moved", "lookups"), [(0.8, LOOKUPS), (0.0, LOOKUPS[:1]), (0.0, ())])
def test_a_lookup_is_not_named_where_it_is_not_needed_or_no_better(moved: float, lookups: tuple[Any, ...]) -> None:
    verdict = diagnosed(simulate(moved=moved), lookups)["verdict"]
    assert "needs_lookup" not in [verdict["cause"], *verdict["also"]]
    assert "looked up" not in verdict["words"]


def test_less_is_worth_counting_the_more_examples_there_are() -> None:
    """A headroom that two initialisations could differ by on a short stream counts on a long stream."""
    nudge: dict[str, Any] = {"knows": 0.05, "moved": 0.5}
    short = diagnosed(simulate(**nudge, rows=3_000))
    long = diagnosed(simulate(**nudge, rows=40_000))
    assert short["verdict"]["cause"] == "no_headroom"
    assert long["verdict"]["cause"] == "pays"
    assert long["gain"]["percent"] < 0.5


def test_figures_without_a_meaning_are_none() -> None:
    windows = simulate(rows=50)
    for rows in windows:
        rows.label[:] = False
    windows[0].label[:1] = True
    measures = measured(windows)
    assert measures["gain"]["percent"] is None and measures["headroom"]["recalibrated"]["percent"] is None
    assert measures["predictions"]["control"]["recalibration"] is None


def test_the_spread_of_a_control_that_explains_nothing_is_chance() -> None:
    """Scale and level of predictions that hardly vary say nothing about rates, unless the training blew up before."""
    blind: dict[str, Any] = {"control": lambda logit, rng: -1.0 + rng.normal(0, 0.02, logit.size), "moved": 0.0}
    windows = simulate(**blind)
    entry = diagnosed(windows)
    control = entry["predictions"]["control"]
    assert control["ne"] - control["ne_recalibrated"] > 0.002 and not 0.9 < control["recalibration"]["scale"] < 1.15
    assert entry["verdict"]["cause"] == "small_student"
    windows[0].control[:] = 0.999
    assert diagnosed(windows)["verdict"]["cause"] == "wrong_rate"
