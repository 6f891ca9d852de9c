"""The pages as a browser shows them: on a desk and on a phone, light and dark, without a network."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exfm.reporting.html import render_report
from exfm.reporting.sweep_summary import PointResult, render_sweep, summarize
from tests.reporting.browser import chromium, read

WIDTHS = (1280, 390)
MODES = ("light", "dark")
TEXT, GRAPHICS, FAINT = 4.5, 3.0, 2.0


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def many(results: dict[str, Any]) -> dict[str, Any]:
    """Adds ten models with controls and two tasks, with long names, gains of all sizes and missing figures."""
    gain = results["gains"][0]
    long = "a_vertical_model_with_a_name_that_is_far_too_long_for_a_phone_or_for_any_card_" * 2
    for index in range(10):
        name = f"{long}{index}" if index == 0 else f"vm{index}"
        for suffix in ("", ".control"):
            results["models"][f"{name}{suffix}"] = copy.deepcopy(results["models"]["vm" + suffix])
        low = (index - 5) / 4
        compared = gain | {"model": name, "control": f"{name}.control", "ne_gain_percent": low + 0.3}
        results["gains"].append(compared | {"interval95": [low, low + 0.6] if index != 3 else None})
    for model in results["models"].values():
        model["tasks"]["conversion"] = model["tasks"]["click"]
    return results


@pytest.fixture(params=["one model", "many models", "nothing compared", "a sweep"])
def page(request: pytest.FixtureRequest, results: dict[str, Any], tmp_path: Path) -> Path:
    """Writes every kind of page."""
    config = "name: drifting\nrun_dir: " + "folder/" * 40
    if request.param == "a sweep":
        axes = {"models.vm.embedding_dim": ["8", "16"], "seed": ["1", "2"]}
        values = [{"models.vm.embedding_dim": dim, "seed": seed} for dim in ("8", "16") for seed in ("1", "2")]
        points = [PointResult(point, str(point) * 3, results) for point in values]
        text = render_sweep(summarize("drifting", axes, points))
    else:
        if request.param == "many models":
            results = many(results)
        elif request.param == "nothing compared":
            results["gains"] = []
        text = render_report(results, config)
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_page_reads_well(driver: Any, page: Path) -> None:
    for width in WIDTHS:
        for mode in MODES:
            reader = read(driver, page, width, mode)
            where = f"{width} pixels, {mode}"
            assert reader.words_off_screen() == [], where
            assert reader.requests() == [], where
            assert reader.complaints() == [], where
            contrasts = reader.contrasts()
            assert len(contrasts) > 60, where
            assert [(text, ratio) for text, ratio in contrasts if not text.startswith("<") and ratio < TEXT] == [], (
                where
            )


def test_lines_of_plots_stand_out(driver: Any, results: dict[str, Any], tmp_path: Path) -> None:
    """Each colour of a series against the page; the grid may be faint, and shapes in the page's colour are not seen."""
    page = tmp_path / "page.html"
    page.write_text(render_report(many(results), ""), encoding="utf-8")
    for mode in MODES:
        contrasts = read(driver, page, 1280, mode).contrasts()
        ratios = {round(ratio, 2) for shape, ratio in contrasts if shape.startswith("<")}
        assert len(ratios) >= 8
        assert [ratio for ratio in ratios if FAINT < ratio < GRAPHICS] == [], mode


@pytest.mark.parametrize("width", WIDTHS)
def test_the_gain_and_its_interval_are_on_the_first_screen(
    width: int, driver: Any, results: dict[str, Any], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(render_report(results, ""), encoding="utf-8")
    reader = read(driver, page, width, "light")
    for words in ("+0.43", "+0.31% to +0.55%", "better than vm.control", "Gain share 0.35"):
        assert 0 < reader.top_of(words) < 844, words
