"""The report as a page: complete, self-contained, safe."""

from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from exfm.reporting.gain_scale import GainScale
from exfm.reporting.html import render_report
from exfm.reporting.plots import series_styles
from tests.processes import leave_plots_out

VOID = {"meta", "link", "br", "img", "line", "path", "use", "hr", "input"}


class Page(HTMLParser):
    """Collects a page's tags, attributes and visible text; fails where tags do not nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data.split()

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_plots_out(monkeypatch)


WORDS_ALONE = pytest.mark.usefixtures("no_plots")
"""For tests that read the words of a page: its plots take most of the time."""


@WORDS_ALONE
def test_first_comes_the_gain_with_its_interval_and_gain_share(results: dict[str, Any]) -> None:
    text = Page(render_report(results, "name: drifting")).text
    first = text[: text.index("NE over time")]
    for fact in ("vm on click", "+0.43 % NE gain", "better than vm.control", "+0.31% to +0.55%", "0.35"):
        assert fact in first
    assert "fm itself gains +1.25%" in first


@WORDS_ALONE
def test_tables_hold_quality_cost_and_supervision(results: dict[str, Any]) -> None:
    text = Page(render_report(results, "")).text
    assert "fm 0.81000 0.80000 0.80000 0.01000 0.7500 0.7000 0.30000 1.020 12.50% 600" in text
    assert "vm 1.23k 5.68M 2.5M 12.3k 800" in text
    assert "vm fm 98.7% 25 h" in text
    assert "66.7% of the wall time" in text


@WORDS_ALONE
def test_recall_stands_beside_how_many_groups_it_is_of(results: dict[str, Any]) -> None:
    assert "recall" not in Page(render_report(results, "")).text.lower()
    figures = results["models"]["vm"]["tasks"]["click"]
    figures["recall_at"] = {"10": 0.512345, "50": None}
    figures["recall_counts"] = {"10": {"groups": 40, "examples": 550}, "50": {"groups": 0, "examples": 0}}
    text = Page(render_report(results, "")).text
    assert "vm 10 0.5123 40 550 vm 50 \u2013 0 0" in text
    assert "more than k examples" in text


def test_the_page_needs_nothing_but_itself(results: dict[str, Any]) -> None:
    html = render_report(results, "")
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert all(value.startswith("#") for name, value in page.attributes if name in ("src", "href", "xlink:href"))
    assert not [name for name, _ in page.attributes if name.startswith("on")]


def test_plots_take_their_colours_from_the_page(results: dict[str, Any]) -> None:
    """A colour fixed in a plot could be invisible in dark mode."""
    html = render_report(results, "")
    plots = re.findall(r"<figure>.*?</figure>", html, re.DOTALL)
    assert len(plots) == 5
    assert all("currentColor" in plot and 'role="img"' in plot for plot in plots)
    assert not re.search(r"(fill|stroke): #", "".join(plots))
    defined = set(re.findall(r"(--c\d+):", html))
    assert set(re.findall(r"var\((--c\d+)\)", html)) <= defined


def test_same_results_same_bytes(results: dict[str, Any]) -> None:
    assert render_report(results, "a: 1") == render_report(copy.deepcopy(results), "a: 1")


def test_names_and_config_are_text_and_not_markup(results: dict[str, Any]) -> None:
    evil = "<script>alert('$x$')</script>&\"é漢"
    results["experiment"] = evil
    results["models"][evil] = results["models"].pop("vm")
    results["gains"][0]["model"] = evil
    results["supervision"] = {"fm": {evil: {"hit_rate": 1.0, "age_s": None}}}
    page = Page(render_report(results, f"name: {evil}"))
    assert "script" not in page.tags
    assert page.text.count("<script>alert('$x$')</script>&\"é漢") >= 6


def test_a_bare_run_has_a_report_too(results: dict[str, Any]) -> None:
    """A single model without control, oracle, cost or time, all of whose figures are missing."""
    figures: dict[str, Any] = dict.fromkeys(("ne", "auc", "gauc", "log_loss", "calibration", "base_rate"))
    model = {"tasks": {"click": {**figures, "windows": []}}, "parameters": None, "flops_per_example": None}
    bare = {"experiment": "bare", "seed": 0, "models": {"vm": model}}
    text = Page(render_report(bare, "")).text
    assert "No model of this experiment has a control" in text
    assert "Bayes NE" not in text
    assert "Supervision" not in text


@WORDS_ALONE
def test_notes_stand_at_the_top(results: dict[str, Any]) -> None:
    assert 'class="notes"' not in render_report(results, "")
    results["notes"] = ["300 rows came <late>", "the teacher 'fm' was not used"]
    page = Page(render_report(results, ""))
    words = " ".join(" ".join(page.words).split())
    assert "300 rows came <late>" in words and "the teacher 'fm' was not used" in words
    assert words.index("was not used") < words.index("Gain over the control")


@WORDS_ALONE
def test_skipped_rows_are_not_kept_quiet(results: dict[str, Any]) -> None:
    assert "skipped" not in Page(render_report(results, "")).text.split("Gain over")[0]
    results["data"]["skipped_rows"] = 1234
    assert "seed 7, 1.23k rows of the data skipped" in Page(render_report(results, "")).text


@WORDS_ALONE
@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ({"interval95": [-0.5, -0.1], "ne_gain_percent": -0.3}, "worse than vm.control"),
        ({"interval95": [-0.5, 0.1], "ne_gain_percent": -0.2}, "no clear difference from vm.control"),
        ({"interval95": None, "ne_gain_percent": 0.1}, "no interval against vm.control"),
        ({"interval95": None, "ne_gain_percent": None}, "no interval against vm.control"),
        ({"gain_share": None, "teacher_ne_gain_percent": -0.2}, "No gain share: fm itself gains \u22120.20%"),
        (
            {"gain_share": None, "teacher_ne_gain_percent": 0.02, "teacher_interval95": [-0.1, 0.14]},
            "No gain share: fm itself gains +0.02% (\u22120.10% to +0.14%)",
        ),
    ],
)
def test_a_gain_is_described_by_its_interval(results: dict[str, Any], gain: dict[str, Any], words: str) -> None:
    results["gains"][0] |= gain
    text = Page(render_report(results, "")).text
    assert words in text
    assert ("better than vm.control" in text) == ("gain_share" in gain)


@WORDS_ALONE
def test_a_model_of_no_use_is_named_first(results: dict[str, Any]) -> None:
    assert "worse than predicting" not in render_report(results, "")
    results["models"]["vm"]["tasks"]["click"]["ne"] = 12.04
    page = render_report(results, "")
    assert 0 < page.index("vm, click: NE 12.04 is worse than predicting the base rate") < page.index('id="gain"')


@WORDS_ALONE
def test_two_teachers_share_one_comparison(results: dict[str, Any]) -> None:
    results["gains"].append(results["gains"][0] | {"teacher": "domain_fm", "gain_share": 0.5})
    text = Page(render_report(results, "")).text
    assert text.count("% NE gain") == 1
    assert "0.35 : fm" in text
    assert "0.50 : domain_fm" in text


@WORDS_ALONE
def test_results_of_0_1_0_have_the_gain_share_under_its_old_name(results: dict[str, Any]) -> None:
    results["gains"][0]["transfer_ratio"] = results["gains"][0].pop("gain_share")
    assert "Gain share 0.35" in Page(render_report(results, "")).text


def test_many_models_find_a_style(results: dict[str, Any]) -> None:
    """No two of eighteen models that are no controls are drawn alike."""
    for index in range(20):
        results["models"][f"vm{index}"] = results["models"]["vm"]
    drawn = list(series_styles(results).values())
    assert len(drawn) == 23
    assert len({(style.color, style.dashes, style.marker) for style in drawn if not style.hollow}) == 18


def test_a_control_is_its_model_in_outline(results: dict[str, Any]) -> None:
    styles = series_styles(results)
    model, control = styles["vm"], styles["vm.control"]
    assert (control.color, control.marker) == (model.color, model.marker)
    assert control.hollow and control.dashes and not model.hollow and not model.dashes
    assert styles["fm"].color != model.color and styles["fm"].marker != model.marker


def test_many_comparisons_are_counted_and_rows_without_end_are_no_plot(results: dict[str, Any]) -> None:
    gain = results["gains"][0]
    for index in range(20):
        for suffix in ("", ".control"):
            results["models"][f"vm{index}{suffix}"] = results["models"]["vm" + suffix]
        bounds = {"interval95": [-0.2, 0.9]} if index < 3 else {}
        results["gains"].append(gain | {"model": f"vm{index}", "control": f"vm{index}.control"} | bounds)
    html = render_report(results, "")
    text = Page(html).text
    assert "18 better than the control 3 without a clear difference 0 worse" in text
    assert "vm19 on click +0.43 % NE gain ▲ better than vm19.control 95% interval +0.31% to +0.55%" in text
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions == ["NE over time: click, without controls", "Age of supervision: fm", "Time"]


@pytest.mark.parametrize("bounds", [[0.31, 0.55], [-3.0, -0.5], [-0.02, 0.01], None])
def test_gains_lie_where_their_scale_says(bounds: list[float] | None) -> None:
    gain = {"ne_gain_percent": sum(bounds) / 2 if bounds else None, "interval95": bounds}
    scale = GainScale.from_gains([gain])
    values = [0.0, *(bounds or [])]
    positions = [float(scale.position(value).rstrip("%")) for value in values]
    assert all(0 < position < 100 for position in positions)
    assert sorted(positions) == [position for _, position in sorted(zip(values, positions, strict=True))]
    ticks = {float(label.rstrip("%").replace("\u2212", "-")): position for position, label in scale.ticks}
    assert 2 <= len(ticks) <= 6 and ticks[0.0] == scale.position(0)
    assert all(scale.position(value) == position for value, position in ticks.items())


@WORDS_ALONE
def test_table_headers_have_a_scope(results: dict[str, Any]) -> None:
    html = render_report(results, "")
    heads = re.findall(r"<th( [^>]*)?>", html)
    assert heads and all('scope="col"' in head or 'scope="row"' in head for head in heads)
    assert html.count("<table") == html.count("<caption>") == len(re.findall(r'role="region" aria-label="[^"]+"', html))


def test_plots_have_a_description_in_words(results: dict[str, Any]) -> None:
    words = re.findall(r'role="img" aria-label="([^"]*)"', render_report(results, ""))
    assert len(words) == 5
    assert words[0] == "NE of click over time, by model. At the end: fm 0.8225, vm 0.8425, vm.control 0.8475."


def test_calibration_far_off_keeps_the_axis_where_calibrations_can_be(results: dict[str, Any]) -> None:
    results["models"]["vm"]["tasks"]["click"]["calibration"] = 6.3
    plot = re.search(r"<figcaption>Calibration</figcaption>.*?</figure>", render_report(results, ""), re.DOTALL)
    assert plot is not None
    assert "\u2212" not in plot[0]
