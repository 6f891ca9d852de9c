"""Creates multi-layer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import nn

ActivationName = Literal["relu", "silu", "gelu"]
_ACTIVATIONS: dict[ActivationName, type[nn.Module]] = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def activation(name: ActivationName) -> nn.Module:
    """Creates an activation module."""
    return _ACTIVATIONS[name]()


def mlp(
    widths: Sequence[int], name: ActivationName, *, activate_last: bool = False, bias: bool = True
) -> nn.Sequential:
    """Creates linear layers with activations between them.

    Args:
        widths: width of the input, then of each layer.
        name: name of the activation.
        activate_last: whether an activation follows the last layer too.
        bias: whether the layers have biases.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=bias), activation(name)]
    return nn.Sequential(*(layers if activate_last else layers[:-1]))
