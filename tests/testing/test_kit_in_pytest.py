"""The kit as a plugin's author uses it: a test file of his own, run by pytest."""

from __future__ import annotations

import pytest

import exfm.testing
from exfm.testing import BackboneTests
from tests.testing.sound import SoundEncoder

pytest_plugins = ["pytester"]

TESTS = """
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

import exfm
from exfm.testing import BackboneTests, SequenceEncoderTests


class Scaled(exfm.Backbone):
    name = "scaled"

    class Config(exfm.ComponentConfig):
        factor: float = Field(1.0, description="Factor.")
        batch_mean: bool = Field(False, description="Whether the batch's mean is taken off.")

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.output_dim = inputs.dim

    def forward(self, tokens_BND, sequences):
        x = self.config.factor * tokens_BND.sum(1)
        return x - x.sum(0) if self.config.batch_mean else x


class Narrow(BackboneTests):
    dim = 2


class TestScaled(Narrow):
    component = Scaled
    configs = ({}, {"factor": 2, "batch_mean": True})

    def test_of_its_own(self):
        assert self.dim == 2
"""


def test_every_test_runs_for_every_config(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_scaled=TESTS)
    pytester.makeini("[pytest]\npython_classes = Test* *Tests Narrow\n")
    run = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rA")
    run.assert_outcomes(passed=73, failed=1, skipped=1)
    run.stdout.fnmatch_lines_random(
        [
            "FAILED *TestScaled::test_neighbours_do_not_matter[[]factor=2, batch_mean=True]*",
            "PASSED *TestScaled::test_neighbours_do_not_matter[[]defaults]",
            "PASSED *TestScaled::test_of_its_own",
            "SKIPPED *TestScaled.plugin names no plugin module",
            "E *example 0 alone against the whole batch: the outputs differ.",
        ]
    )


@pytest.mark.parametrize("component", [None, "sound", SoundEncoder])
def test_a_test_class_must_name_a_component_of_its_kind(component) -> None:
    with pytest.raises(TypeError, match=r"TestIt\.component must be a subclass of exfm\.Backbone, not .*"):
        type("TestIt", (BackboneTests,), {"component": component})


def test_every_public_name_is_there_and_documented() -> None:
    for name in exfm.testing.__all__:
        assert getattr(exfm.testing, name).__doc__
    assert set(exfm.testing.__all__) <= set(dir(exfm.testing))


def test_every_test_says_what_is_required_and_why() -> None:
    for kit in (exfm.testing.BackboneTests, exfm.testing.SequenceEncoderTests):
        assert all(getattr(kit, name).__doc__ for name in dir(kit) if name.startswith("test_"))
