"""Task heads and metrics with a single fault each, and the test of the kit that names it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from exfm import Metric, TaskHead
from exfm.layers import LabelUnit
from exfm.testing import MetricTests, TaskHeadTests
from tests.testing.sound import failed


class Sound(TaskHead):
    """Nothing is wrong: a squared error in units of the first labels."""

    name = "sound"
    label_kind = "regression"
    invertible = True

    def __init__(self, config, label):
        super().__init__(config, label)
        self.unit = LabelUnit()

    def start(self, label_B, weight_B):
        self.unit.fit(label_B, weight_B)
        return self.unit.center.new_zeros(1)

    def loss(self, output, label_B):
        return (output - self.unit.to_unit(label_B)).square()

    def predict(self, output):
        return self.unit.from_unit(output)

    def output_of(self, prediction):
        return self.unit.to_unit(prediction)


class AveragesTheBatch(Sound):
    def loss(self, output, label_B):
        return super().loss(output, label_B) - super().loss(output, label_B).mean() / 2


class ForgetsWeights(Sound):
    def start(self, label_B, weight_B):
        return super().start(label_B, torch.ones_like(weight_B))


class StartsAnywhere(Sound):
    def start(self, label_B, weight_B):
        return super().start(label_B, weight_B) - 9.0


class Overflows(Sound):
    def predict(self, output):
        return (self.unit.scale * output).exp()


class TeachesABias(Sound):
    def soft_loss(self, output, prediction):
        return self.loss(output, prediction + 1.0)


class NoInverse(Sound):
    def output_of(self, prediction):
        return prediction


class FollowsTheLabels(Sound):
    def loss(self, output, label_B):
        self.unit.center.mul_(0.99)
        return super().loss(output, label_B)


class LosesItsUnit(Sound):
    def start(self, label_B, weight_B):
        bias_K = super().start(label_B, weight_B)
        self.size = float(self.unit.scale)
        return bias_K

    def predict(self, output):
        return self.unit.center + getattr(self, "size", 1.0) * output


class OwnsAParameter(Sound):
    def __init__(self, config, label):
        super().__init__(config, label)
        self.slope = torch.nn.Parameter(torch.ones(()))


HEADS: dict[type[Any], dict[str, str]] = {
    AveragesTheBatch: {"an_example_depends_on_itself_alone": "losses, of each example alone and of all together"},
    ForgetsWeights: {"starting_counts_examples_by_their_weight": "unit.center, of weighted and of repeated rows"},
    StartsAnywhere: {"it_starts_among_its_labels": "it starts at a value beyond all labels"},
    Overflows: {"outputs_have_the_declared_shapes_and_are_finite": "at outputs 30 from 0 predictions are not finite"},
    TeachesABias: {"a_teacher_that_agrees_teaches_nothing": "a teacher that agrees moves an output by"},
    NoInverse: {"the_inverse_is_one": "predictions, and those of their outputs"},
    FollowsTheLabels: {"labels_change_nothing_after_the_start": "unit.center, after losses and predictions"},
    LosesItsUnit: {"saved_state_is_the_whole_state": "predictions of loaded state"},
    OwnsAParameter: {"it_has_no_parameters": "a task head has buffers, and no parameters"},
}


class SoundMetric(Metric):
    """Nothing is wrong: the mean absolute error."""

    name = "sound"
    label_kinds = frozenset({"regression"})

    def sums(self, rows):
        return np.array([rows.weight_E.sum(), np.abs(rows.prediction - rows.label_E) @ rows.weight_E])

    def value(self, sums_S):
        return float(sums_S[1] / sums_S[0]) if sums_S[0] else None


class IgnoresWeights(SoundMetric):
    def sums(self, rows):
        error_E = np.abs(rows.prediction - rows.label_E)
        return np.array([float(error_E.size), error_E.sum()])


class KeepsAllErrors(SoundMetric):
    def sums(self, rows):
        return np.concatenate([[rows.weight_E.sum(), 0.0], np.abs(rows.prediction - rows.label_E)])


class DividesByZero(SoundMetric):
    def value(self, sums_S):
        return float(sums_S[1]) / float(sums_S[0])


class GrowsWithTheStream(SoundMetric):
    def value(self, sums_S):
        return float(sums_S[1]) if sums_S[0] else None


class SortsItsInput(SoundMetric):
    def sums(self, rows):
        rows.prediction.sort()
        return super().sums(rows)


METRICS: dict[type[Any], dict[str, str]] = {
    IgnoresWeights: {"rows_without_weight_change_nothing": ""},
    KeepsAllErrors: {"sums_are_of_constant_number": "of 1 examples its sums are (3,), and of 200 (202,)"},
    DividesByZero: {"without_examples_there_is_no_value": "division by zero"},
    GrowsWithTheStream: {"the_same_rows_again_leave_it": ""},
    SortsItsInput: {"inputs_are_left_alone": "it has changed prediction"},
}


def test_nothing_is_wrong_with_sound_components() -> None:
    assert not failed(TaskHeadTests, {"component": Sound})
    assert not failed(MetricTests, {"component": SoundMetric})


@pytest.mark.parametrize("component", HEADS, ids=lambda component: component.__name__)
def test_what_is_wrong_with_a_head_is_said_by_its_own_test(component: type[Any]) -> None:
    faults = failed(TaskHeadTests, {"component": component})
    for test, words in HEADS[component].items():
        assert words in faults[test]


@pytest.mark.parametrize("component", METRICS, ids=lambda component: component.__name__)
def test_what_is_wrong_with_a_metric_is_said_by_its_own_test(component: type[Any]) -> None:
    faults = failed(MetricTests, {"component": component})
    for test, words in METRICS[component].items():
        assert words in faults[test]
