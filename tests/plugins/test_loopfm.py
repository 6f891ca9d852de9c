"""`loopfm`: stored states of a teacher as input tokens."""

from __future__ import annotations

import math

import pytest
import torch

import exfm_plugins.inputs
from exfm.testing import TeacherInputTests
from exfm.transfer import InputSpec, VectorHistory
from exfm_plugins.inputs.loopfm.model import LoopFM
from tests.plugins.checks import Net


class TestLoopFM(TeacherInputTests):
    component = LoopFM
    plugin = exfm_plugins.inputs
    configs = ({}, {"states": 3, "pooling": "mean"}, {"states": 1})


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_is_the_documented_sum_over_the_states_there_are(pooling: str) -> None:
    torch.manual_seed(0)
    config = LoopFM.Config(teacher="fm", states=4, pooling=pooling)
    module = LoopFM(config, InputSpec(6, config.length, {"user": 3})).double()
    encoder: Net = module.encoders["entity_user"]
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter).requires_grad_(False)
    vector_BLK = torch.randn(5, 4, 3, dtype=torch.float64)
    count = [0, 1, 2, 3, 4]
    valid_BL = torch.arange(4) < torch.tensor(count).unsqueeze(1)
    tokens = module({"user": VectorHistory(vector_BLK, valid_BL)})[:, 0]
    assert not tokens[0].any()
    for example in range(1, 5):
        hidden = [
            encoder.hidden(encoder.projection(vector_BLK[example, place]) + encoder.position_LD[place])
            for place in range(count[example])
        ]
        if pooling == "mean":
            expected = sum(hidden) / len(hidden)
        else:
            weights = [math.exp(float(encoder.query_D @ one) / math.sqrt(6)) for one in hidden]
            expected = sum(weight / sum(weights) * one for weight, one in zip(weights, hidden, strict=True))
        torch.testing.assert_close(tokens[example], expected)
