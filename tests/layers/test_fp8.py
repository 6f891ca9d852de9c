"""Linear layers in fp8, computed by torch's kernel for CPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from exfm.layers.fp8 import fp8_problem, use_fp8


def in_bf16(network: nn.Module, values: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return network(values).float()


@pytest.mark.parametrize("rows", [1, 16, 23])
def test_products_and_gradients_are_those_of_rounded_factors(rows: int) -> None:
    """In the second formulation the same rounded factors are multiplied in fp32."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 48)
    assert use_fp8(layer) == 1
    values_MK = torch.randn(rows, 32, requires_grad=True)
    gradient_MO = torch.randn(rows, 48)
    output_MO = in_bf16(layer, values_MK)
    output_MO.backward(gradient_MO)

    def rounded(tensor: Tensor, dtype: torch.dtype) -> Tensor:
        scale = tensor.detach().abs().max().float() / torch.finfo(dtype).max
        return (tensor.detach() / scale).to(dtype).float() * scale

    values, weight = rounded(values_MK, torch.float8_e4m3fn), rounded(layer.weight, torch.float8_e4m3fn)
    # The gradient arrives in bf16, in which the layer's output is.
    gradient = rounded(gradient_MO.bfloat16(), torch.float8_e5m2)
    assert layer.bias.grad is not None and layer.weight.grad is not None and values_MK.grad is not None
    torch.testing.assert_close(output_MO, values @ weight.T + layer.bias, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(values_MK.grad, gradient @ weight, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer.weight.grad, gradient.T @ values, rtol=2e-2, atol=5e-2)
    assert layer.weight.grad.dtype == values_MK.grad.dtype == torch.float32


def test_layers_of_other_widths_and_names_stay_as_they_are() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 20), nn.Linear(20, 1))
    rounded = copy.deepcopy(plain)
    assert use_fp8(rounded) == 1
    assert rounded.state_dict().keys() == plain.state_dict().keys()
    values = torch.randn(5, 3, 32)
    difference = in_bf16(rounded, values) - in_bf16(plain, values)
    assert 0 < difference.norm() < 0.1 * in_bf16(plain, values).norm()


def test_it_learns() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
    use_fp8(network)
    values, expected = torch.randn(64, 16), torch.randn(64, 16)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = (in_bf16(network, values) - expected).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_zeros_stay_zeros_and_a_cpu_is_refused() -> None:
    layer = nn.Linear(16, 16, bias=False)
    use_fp8(layer)
    assert torch.equal(in_bf16(layer, torch.zeros(3, 16)), torch.zeros(3, 16))
    assert "capability 8.9" in fp8_problem(torch.device("cpu"))
