from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

import exfm
from exfm.interfaces.duration import format_duration, parse_duration
from exfm.supervision.store import Store
from exfm.transfer.teacher_parameters import TeacherParameters

durations = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=40_000))


@given(durations)
@example(timedelta(seconds=1_234_567))
@example(timedelta(microseconds=1))
@example(timedelta(0))
def test_what_is_written_is_read_back(value):
    text = format_duration(value)
    assert parse_duration(text) == value
    assert re.search(TypeAdapter(exfm.sources.Duration).json_schema()["pattern"], text)


@given(st.integers(min_value=0, max_value=10**17), st.integers(min_value=0, max_value=6))
@example(2_010_000, 2)
@example(9_007_199_254_740_993, 6)
def test_every_written_duration_is_exact(length_us, decimals):
    length_us -= length_us % 10 ** (6 - decimals)
    seconds, micros = divmod(length_us, 1_000_000)
    text = f"{seconds}.{micros:06}"[: len(str(seconds)) + 1 + decimals].rstrip(".") + "s"
    assert exfm.sources.microseconds(parse_duration(text)) == length_us
    assert format_duration(parse_duration(text)) == format_duration(timedelta(microseconds=length_us))


def test_a_teacher_is_as_old_as_its_delay_says(experiment, write, tmp_path):
    experiment["models"]["fm"]["supervision"] = {"delay": "2.01s", "lag": "16.1s"}
    parameters = TeacherParameters(exfm.load_experiment(write(experiment)), Store(str(tmp_path / "run")))
    assert (parameters.delay_us["fm"], parameters.lags_us["fm"]) == (2_010_000, 16_100_000)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7d", timedelta(days=7)),
        ("1w", timedelta(weeks=1)),
        ("1d12h", timedelta(hours=36)),
        ("1d 12h", timedelta(hours=36)),
        ("0.5h", timedelta(minutes=30)),
        (" 90S ", timedelta(seconds=90)),
    ],
)
def test_durations_as_people_write_them(text, value):
    assert parse_duration(text) == value


@pytest.mark.parametrize("text", ["", "7", 7, 7.5, None, True, "d", "-7d", "7x", "7 days", "1d-2h", "1e3s", [], {}])
def test_a_unit_is_never_guessed(text):
    with pytest.raises(ValueError, match="a duration is a number with a unit, such as 7d"):
        parse_duration(text)


def test_a_duration_has_an_end():
    with pytest.raises(ValueError, match="at most 999999999d"):
        parse_duration("1" + "0" * 400 + "d")


@pytest.mark.parametrize(("value", "text"), [(timedelta(days=7), "7d"), (timedelta(hours=36), "36h")])
def test_the_shortest_form_is_written(value, text):
    assert format_duration(value) == text
