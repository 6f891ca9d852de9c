"""Tests that hold for every metric.

Legend: E examples, W numbers of a prediction, S sums.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest

from exfm.interfaces.component import Component
from exfm.interfaces.metric import Metric, MetricRows
from exfm.interfaces.schema import LabelKind
from exfm.testing.component import ComponentTests


class MetricTests(ComponentTests):
    """Tests of a metric; see ``exfm.testing`` for how to use them. They run for each kind of label that it has.

    Attributes:
        classes: number of classes of a multiclass label.
    """

    interface: ClassVar[type[Component]] = Metric
    classes: ClassVar[int] = 6

    @property
    def kinds(self) -> list[LabelKind]:
        """The kinds of label that the metric is for."""
        return sorted(self.component.label_kinds)

    def make(self, fields: Mapping[str, Any]) -> Any:
        """The metric."""
        return self.component(self.config(fields))

    def rows(self, kind: LabelKind, size: int = 200, *, seed: int = 0) -> MetricRows:
        """Draws examples whose predictions know something of their labels."""
        random = np.random.default_rng(seed)
        weight_E, group_E = random.integers(0, 3, size).astype(np.float64), random.integers(0, 9, size)
        if size:
            weight_E[0] = 1.0
        truth_E = random.normal(size=size)
        if kind == "multiclass":
            logit_EC = random.normal(size=(size, self.classes))
            label_E = (logit_EC + random.normal(size=logit_EC.shape)).argmax(axis=1)
            exp_EC = np.exp(logit_EC)
            return MetricRows(exp_EC / exp_EC.sum(axis=1, keepdims=True), label_E.astype(np.float64), weight_E, group_E)
        if kind == "binary":
            probability_E = 1 / (1 + np.exp(-truth_E))
            return MetricRows(
                probability_E, (random.random(size) < probability_E).astype(np.float64), weight_E, group_E
            )
        return MetricRows(3 + truth_E, 3 + truth_E + random.normal(size=size), weight_E, group_E)

    def test_sums_are_of_constant_number(self, fields: Mapping[str, Any]) -> None:
        """(S,) finite float64, whatever the number of examples: an endless stream takes constant memory."""
        for kind in self.kinds:
            metric = self.make(fields)
            shape = metric.sums(self.rows(kind)).shape
            assert len(shape) == 1, f"its sums are {shape}, not (S,)"
            for size in (1, 2, 7):
                sums_S = metric.sums(self.rows(kind, size))
                assert sums_S.shape == shape, f"of {size} examples its sums are {sums_S.shape}, and of 200 {shape}"
                assert sums_S.dtype == np.float64 and np.isfinite(sums_S).all(), "its sums are not finite float64"

    def test_value_is_a_number_of_json(self, fields: Mapping[str, Any]) -> None:
        """A finite float, as results.json has it."""
        for kind in self.kinds:
            value = self.make(fields).value(self.make(fields).sums(self.rows(kind)))
            assert isinstance(value, float) and math.isfinite(value), f"its value is {value!r}, and no finite float"
            assert json.loads(json.dumps(value)) == value

    def test_without_examples_there_is_no_value(self, fields: Mapping[str, Any]) -> None:
        """None, where nothing has been added, and no division by zero."""
        for kind in self.kinds:
            metric = self.make(fields)
            value = metric.value(np.zeros_like(metric.sums(self.rows(kind))))
            assert value is None, f"the value of no example is {value!r}, and not None"

    def test_the_same_rows_again_leave_it(self, fields: Mapping[str, Any]) -> None:
        """Sums are added: those of two equal windows have the value of one."""
        for kind in self.kinds:
            metric = self.make(fields)
            sums_S = metric.sums(self.rows(kind))
            assert metric.value(sums_S + sums_S) == pytest.approx(metric.value(sums_S), rel=1e-9)

    def test_its_sums_tell_windows_apart(self, fields: Mapping[str, Any]) -> None:
        """The value of two windows lies between theirs, or is near: it depends on both."""
        for kind in self.kinds:
            metric = self.make(fields)
            first_S, second_S = metric.sums(self.rows(kind)), metric.sums(self.rows(kind, seed=1))
            values = sorted((metric.value(first_S), metric.value(second_S)))
            both = metric.value(first_S + second_S)
            slack = 1e-9 + 0.5 * (values[1] - values[0])
            assert values[0] - slack <= both <= values[1] + slack, f"of windows with {values} it makes {both}"

    def test_a_weight_that_all_have_leaves_it(self, fields: Mapping[str, Any]) -> None:
        """Only the relations of weights count."""
        for kind in self.kinds:
            metric, rows = self.make(fields), self.rows(kind)
            heavier = replace(rows, weight_E=3 * rows.weight_E)
            assert metric.value(metric.sums(heavier)) == pytest.approx(metric.value(metric.sums(rows)), rel=1e-9)

    def test_rows_without_weight_change_nothing(self, fields: Mapping[str, Any]) -> None:
        """Their predictions are in no figure."""
        for kind in self.kinds:
            metric, rows, others = self.make(fields), self.rows(kind), self.rows(kind, seed=3)
            weightless = rows.weight_E == 0
            columns = weightless if rows.prediction.ndim == 1 else weightless[:, None]
            other = replace(rows, prediction=np.where(columns, others.prediction, rows.prediction))
            assert metric.value(metric.sums(other)) == pytest.approx(metric.value(metric.sums(rows)), rel=1e-9)

    def test_it_depends_on_predictions(self, fields: Mapping[str, Any]) -> None:
        """Predictions of other examples are worse or better."""
        for kind in self.kinds:
            metric, rows = self.make(fields), self.rows(kind)
            other = replace(rows, prediction=rows.prediction[::-1])
            assert metric.value(metric.sums(other)) != metric.value(metric.sums(rows)), "any predictions give its value"

    def test_inputs_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Other metrics read the same arrays; the same arrays give the same sums."""
        for kind in self.kinds:
            metric, rows = self.make(fields), self.rows(kind)
            before = {field.name: getattr(rows, field.name).copy() for field in fields_of(rows)}
            first_S, second_S = metric.sums(rows), metric.sums(rows)
            assert np.array_equal(first_S, second_S), "called twice, its sums differ"
            for name, value in before.items():
                assert np.array_equal(getattr(rows, name), value), f"it has changed {name}"

    def test_titles_tell_configs_apart(self) -> None:
        """results.json has a figure per title: two configs of different values need two names."""
        kind = self.kinds[0]
        values: dict[str, set[float | None]] = {}
        for fields in self.configs:
            metric = self.make(fields)
            values.setdefault(metric.title, set()).add(metric.value(metric.sums(self.rows(kind))))
        shared = [title for title, different in values.items() if len(different) > 1]
        assert not shared, f"configs with different values are all called {shared[0]!r}; override title"
