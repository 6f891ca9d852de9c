import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exfm.interfaces.distillation_strategy import StudentOutput, TeacherOutput
from exfm.interfaces.schema import FeatureSchema
from exfm.modeling.sampling import LogSampling


def sampling(rate: float) -> LogSampling:
    features = [{"name": "item", "kind": "categorical", "rows": 8}]
    labels = [{"name": "click", "sampling_rate": rate}, {"name": "like"}]
    return LogSampling(FeatureSchema.model_validate({"features": features, "labels": labels}))


@given(st.floats(0.01, 0.9), st.floats(1e-3, 0.99))
def test_the_log_has_the_probability_of_bayes(rate: float, probability: float) -> None:
    # A row is kept with probability 1 if it is positive, and with the rate if it is negative.
    in_log = probability / (probability + (1 - probability) * rate)
    soft_B, hit_B = torch.tensor([probability]), torch.tensor([True])
    teacher = TeacherOutput({"click": soft_B, "like": soft_B}, {"click": hit_B, "like": hit_B})
    moved = sampling(rate).teacher_in_log(teacher)
    assert moved.probabilities["click"].item() == pytest.approx(in_log, rel=1e-4)
    assert moved.probabilities["like"] is soft_B
    back = sampling(rate).of_all_traffic(moved)
    assert back.probabilities["click"].item() == pytest.approx(probability, rel=1e-3)
    logit_B = torch.logit(soft_B)
    student = StudentOutput(torch.zeros(1, 2), {"click": logit_B, "like": logit_B})
    seen = sampling(rate).in_log(student)
    assert seen.logits["click"].sigmoid().item() == pytest.approx(in_log, rel=1e-4)
    assert seen.logits["like"] is logit_B


def test_a_log_that_is_not_sampled_is_not_copied() -> None:
    student = StudentOutput(torch.zeros(1, 2), {"click": torch.zeros(1)})
    teacher = TeacherOutput({"click": torch.zeros(1)}, {"click": torch.tensor([True])})
    assert sampling(1.0).in_log(student) is student
    assert sampling(1.0).teacher_in_log(teacher) is teacher
