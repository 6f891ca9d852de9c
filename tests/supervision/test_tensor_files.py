"""Tensors written as safetensors read back as they were, by the library itself."""

from __future__ import annotations

import io
import random

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from exfm.supervision.tensor_files import write_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def written(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    return file.getvalue()


def everything() -> dict[str, Tensor]:
    tensors = {f"float {dtype}": torch.randn(3, 5).to(dtype) for dtype in FLOATS}
    tensors |= {f"integer {dtype}": torch.randint(0, 100, (7,), dtype=dtype) for dtype in INTEGERS}
    shapes = {"bits": torch.tensor([True, False, True]), "one": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    return tensors | shapes | {"parameter": torch.nn.Parameter(torch.randn(2, 2))}


@pytest.mark.parametrize("metadata", [None, {"watermark_us": "17"}])
def test_what_is_written_reads_back(metadata: dict[str, str] | None) -> None:
    tensors = everything()
    read = load(written(tensors, metadata))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0)


def test_the_order_of_the_tensors_does_not_show() -> None:
    tensors = everything()
    mixed = list(tensors.items())
    random.Random(0).shuffle(mixed)
    assert written(tensors) == written(dict(mixed))


def test_no_tensors_are_a_file_too() -> None:
    assert load(written({})) == {}
