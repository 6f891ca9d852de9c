"""The table in the terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from exfm.reporting.formatting import count, duration, fixed, interval, percent, signed
from exfm.reporting.result_table import result_table


def printed(results: dict[str, Any], width: int = 100) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(result_table(results))
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def row(lines: list[str], model: str) -> list[str]:
    return next(line.split() for line in lines if line.startswith(model + " "))


def test_one_line_for_each_model_and_task_within_100_columns(results: dict[str, Any]) -> None:
    lines = printed(results)
    assert " ".join(row(lines, "fm")) == "fm click 0.8100 0.8000 0.7500 0.7000 12.5%"
    gain = "+0.43% (+0.31% to +0.55%) 0.35"
    assert " ".join(row(lines, "vm")) == f"vm click 0.8300 0.8000 0.7500 0.7000 12.5% {gain}"
    assert row(lines, "vm.control")[-1] == "12.5%"
    assert max(map(len, lines)) <= 100
    assert len(lines) == 5


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_no_name_and_no_figure_is_broken_at_any_width(width: int, results: dict[str, Any]) -> None:
    results["models"]["domain_fm.control"] = results["models"].pop("vm.control")
    results["models"]["vm"]["tasks"]["conversion"] = results["models"]["vm"]["tasks"]["click"]
    lines = printed(results, width)
    assert max(map(len, lines)) <= width
    words = {word for line in lines for word in line.split()}
    assert {"fm", "vm", "domain_fm.control", "click", "conversion", "0.8300", "12.5%", "0.35"} <= words
    text = "\n".join(lines)
    for whole in ("NE gain (95% interval)", "Bayes NE", "base rate", "+0.43% (+0.31% to +0.55%)"):
        assert whole in text


def test_what_does_not_fit_follows_below_with_the_names(results: dict[str, Any]) -> None:
    lines = printed(results, 80)
    assert " ".join(row(lines, "vm")) == "vm click 0.8300 0.8000 0.7500 0.7000 12.5%"
    assert " ".join(lines[-1].split()) == "vm click +0.43% (+0.31% to +0.55%) 0.35"
    assert lines[-2].split()[:2] == ["model", "task"]


def test_notes_stand_below_the_table(results: dict[str, Any]) -> None:
    results["notes"] = ["300 rows came late", "[red]a teacher[/] was not used"]
    assert printed(results)[-2:] == ["note: 300 rows came late", "note: [red]a teacher[/] was not used"]


def test_no_column_for_a_limit_nobody_knows(results: dict[str, Any]) -> None:
    for model in results["models"].values():
        del model["tasks"]["click"]["bayes_ne"]
    lines = printed(results)
    assert "Bayes" not in lines[1]
    assert row(lines, "vm")[:4] == ["vm", "click", "0.8300", "0.7500"]


def test_a_model_that_is_worse_than_the_base_rate_is_said_to_be(results: dict[str, Any]) -> None:
    assert not any("worse than" in line for line in printed(results))
    results["models"]["vm"]["tasks"]["click"]["ne"] = 12.04
    text = " ".join(" ".join(printed(results)).split())
    assert (
        "vm, click: NE 12.04 is worse than predicting the base rate: the model has diverged, or learned nothing" in text
    )


def test_names_are_not_markup(results: dict[str, Any]) -> None:
    results["models"]["[red]x[/]"] = results["models"].pop("fm")
    assert row(printed(results), "[red]x[/]")[1] == "click"


def test_missing_figures_leave_a_dash_and_a_missing_gain_nothing(results: dict[str, Any]) -> None:
    results["gains"][0] |= {"interval95": None, "gain_share": None}
    results["models"]["fm"]["tasks"]["click"]["ne"] = None
    lines = printed(results)
    assert row(lines, "fm")[2] == "\u2013"
    assert row(lines, "vm")[-2:] == ["+0.43%", "\u2013"]
    results["gains"][0]["ne_gain_percent"] = None
    assert row(printed(results), "vm")[-1] == "12.5%"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (fixed(0.79551), "0.7955"),
        (fixed(-0.02, 2), "\u22120.02"),
        (signed(0.234), "+0.23"),
        (signed(-0.236), "\u22120.24"),
        (signed(-0.004), "+0.00"),
        (percent(0.1234), "12.3%"),
        (interval((-0.1, 0.25)), "\u22120.10% to +0.25%"),
        (count(950), "950"),
        (count(12_345), "12.3k"),
        (count(3.2e12), "3.2T"),
        (duration(0), "0 s"),
        (duration(119), "119 s"),
        (duration(150), "2.5 min"),
        (duration(86_400), "24 h"),
        (duration(3 * 86_400), "3 d"),
    ],
)
def test_figures_read_well(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize("show", [fixed, signed, percent, count, duration, interval])
def test_a_figure_that_is_missing_is_a_dash(show: Any) -> None:
    assert show(None) == "\u2013"
