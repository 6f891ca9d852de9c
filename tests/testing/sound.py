"""A sound backbone and a sound encoder, and the messages of the kits about a component."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exfm import Backbone, SequenceEncoder
from exfm.testing import BackboneTests, SequenceEncoderTests


class SoundBackbone(Backbone):
    """Two blocks over the flattened tokens."""

    name = "sound"

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        width = len(inputs.tokens) * inputs.dim
        self.layers = nn.ModuleList([nn.Linear(width, width), nn.Linear(width, width)])
        self.output_dim = width

    def forward(self, tokens_BND, sequences):
        x = tokens_BND.flatten(1)
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x


class SoundEncoder(SequenceEncoder):
    """A summary token: the mean of the events' projections."""

    name = "sound"

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.linear = nn.Linear(inputs.dim, inputs.dim)

    def forward(self, sequence, context_BND):
        projected = sequence.with_values(self.linear(sequence.values_ED))
        return (total(projected) / sequence.lengths.clamp(min=1).unsqueeze(1)).unsqueeze(1)


def total(sequence) -> Tensor:
    """The sum of each example's events."""
    zeros = sequence.values_ED.new_zeros(sequence.batch_size, sequence.values_ED.shape[1])
    return zeros.index_add(0, sequence.example_index(), sequence.values_ED)


def padded(sequence, longest: int) -> Tensor:
    """Events (B, T, D), zeros after an example's last."""
    places = torch.arange(longest, device=sequence.offsets.device)
    rows = torch.where(
        places < sequence.lengths.unsqueeze(1), sequence.offsets[:-1].unsqueeze(1) + places, len(sequence.values_ED)
    )
    return torch.cat([sequence.values_ED, sequence.values_ED.new_zeros(1, sequence.values_ED.shape[1])])[rows]


def failures(component: type[Any], **attributes: Any) -> dict[str, str]:
    """The messages of the kit's tests that fail of a network, by name."""
    kit = BackboneTests if issubclass(component, Backbone) else SequenceEncoderTests
    return failed(kit, {"component": component, "supports_export": "slow, and tested elsewhere"} | attributes)


def failed(
    kit: type[Any], attributes: dict[str, Any], fields: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, str]:
    """The messages of a kit's tests that fail of a component, by name.

    Args:
        kit: the tests.
        attributes: those of the test class.
        fields: the component's.
    """
    tests = type("TestIt", (kit,), attributes)()
    messages = {}
    for name in dir(tests):
        if name.startswith("test_"):
            test = getattr(tests, name)
            try:
                test(fields) if "fields" in inspect.signature(test).parameters else test()
            except pytest.skip.Exception:
                pass
            except (Exception, pytest.fail.Exception) as error:
                # Where pytest rewrites the kit's asserts, it puts their values below the message.
                messages[name.removeprefix("test_")] = str(error).partition("\nassert ")[0]
    return messages
