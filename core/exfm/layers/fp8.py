"""Linear layers whose matrix products, forward and backward, are of 8-bit floating-point numbers.

Legend: M rows, K input columns, O output columns.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MULTIPLE = 16
"""Both widths of a layer must be multiples of it, because the kernels load 16 numbers of 8 bits at once."""

_CAPABILITY = (8, 9)  # Ada; Hopper (9.0) and all later ones have fp8 too
_FORWARD, _BACKWARD = torch.float8_e4m3fn, torch.float8_e5m2
"""Types of weights and activations, with 3 bits of mantissa, and of gradients, which vary more (2209.05433)."""


def fp8_problem(device: torch.device) -> str:
    """Returns why a device has no fp8 products; empty where it has them."""
    needed = "fp8 needs a GPU of compute capability 8.9 or higher (Ada, Hopper or newer)"
    if device.type != "cuda":
        return f"{needed}, and this process computes on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < _CAPABILITY:
        return f"{needed}, and {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    return ""


def use_fp8(module: nn.Module) -> int:
    """Lets every linear layer of a module compute in fp8 whose widths allow it, in place, and returns their number.

    Parameters keep their names and their dtype.
    """
    changed = 0
    for layer in module.modules():
        # Subclasses may compute something else with their weight.
        if type(layer) is nn.Linear and not (layer.in_features % MULTIPLE or layer.out_features % MULTIPLE):
            layer.forward = partial(fp8_linear, layer)  # type: ignore[method-assign]
            changed += 1
    return changed


def fp8_linear(layer: nn.Linear, values: Tensor) -> Tensor:
    """Maps (..., K) to (..., O) in bf16: ``x W^T + b``, the product in fp8 with a scale for each of its tensors."""
    product_MO: Tensor = _Fp8Product.apply(values.flatten(0, -2), layer.weight)  # type: ignore[no-untyped-call]
    output = product_MO.view(*values.shape[:-1], layer.out_features)
    return output if layer.bias is None else output + layer.bias.to(output.dtype)


class _Fp8Product(torch.autograd.Function):
    """Computes ``x W^T``; the backward pass reuses the rounded tensors of the forward pass."""

    @staticmethod
    def forward(ctx: Any, values_MK: Tensor, weight_OK: Tensor) -> Tensor:
        values8_MK, values_scale = _rounded(values_MK, _FORWARD)
        weight8_OK, weight_scale = _rounded(weight_OK, _FORWARD)
        ctx.save_for_backward(values8_MK, values_scale, weight8_OK, weight_scale)
        ctx.dtypes = values_MK.dtype, weight_OK.dtype
        return _product(values8_MK, weight8_OK.t(), values_scale, weight_scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        values8_MK, values_scale, weight8_OK, weight_scale = ctx.saved_tensors
        gradient8_MO, gradient_scale = _rounded(gradients[0], _BACKWARD)
        # Kernels take the second factor with its columns in memory one after the other.
        columns_OK = weight8_OK.t().contiguous().t()
        values_gradient = _product(gradient8_MO, columns_OK, gradient_scale, weight_scale)
        # The sum over rows needs a multiple of 16 of them too; rows of zeros add nothing.
        padding = -len(values8_MK) % MULTIPLE
        gradient8_OM = _padded_columns(gradient8_MO, padding)
        columns_MK = _padded_columns(values8_MK, padding).t()
        weight_gradient = _product(gradient8_OM, columns_MK, gradient_scale, values_scale)
        values_dtype, weight_dtype = ctx.dtypes
        return values_gradient.to(values_dtype), weight_gradient.to(weight_dtype)


def _product(left: Tensor, right: Tensor, left_scale: Tensor, right_scale: Tensor) -> Tensor:
    return torch._scaled_mm(left, right, scale_a=left_scale, scale_b=right_scale, out_dtype=torch.bfloat16)


def _rounded(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rounds a tensor to fp8, scaled so that its largest number is the type's, and returns the scale to undo it."""
    largest = torch.finfo(dtype).max
    # In fp32, because a scale of few bits would change every number. A tensor of zeros has any scale.
    scale = values.detach().abs().amax().float().clamp(min=1e-12) / largest
    # Clamped, because a quotient that is rounded up beyond the largest number would be NaN.
    return (values / scale).clamp(-largest, largest).to(dtype).contiguous(), scale


def _padded_columns(values8: Tensor, padding: int) -> Tensor:
    """Returns the transpose with columns of zeros appended, row by row in memory."""
    transposed = values8.t().contiguous()
    if not padding:
        return transposed
    # As bytes, because few operations know fp8; zero has the bits of the byte zero.
    padded = nn.functional.pad(transposed.view(torch.uint8), (0, padding))
    return padded.view(values8.dtype)
