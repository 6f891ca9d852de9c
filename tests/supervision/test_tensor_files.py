"""Tensors written as safetensors read back unchanged, with the safetensors package too."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

import exfm
from exfm.storage import tensor_files
from exfm.storage.tensor_files import TensorFile, read_tensors, write_tensors

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def written(tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    file = io.BytesIO()
    write_tensors(file, tensors, metadata)
    return file.getvalue()


def everything() -> dict[str, Tensor]:
    tensors = {f"float {dtype}": torch.randn(3, 5).to(dtype) for dtype in FLOATS}
    tensors |= {f"integer {dtype}": torch.randint(0, 100, (7,), dtype=dtype) for dtype in INTEGERS}
    shapes = {"bits": torch.tensor([True, False, True]), "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4)}
    return tensors | shapes | {"parameter": torch.nn.Parameter(torch.randn(2, 2))}


@pytest.mark.parametrize("metadata", [None, {"watermark_us": "17"}])
def test_written_tensors_read_back(metadata: dict[str, str] | None) -> None:
    tensors = everything()
    read = load(written(tensors, metadata))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0)


def test_the_order_of_the_tensors_does_not_change_the_file() -> None:
    tensors = everything()
    mixed = list(tensors.items())
    random.Random(0).shuffle(mixed)
    assert written(tensors) == written(dict(mixed))


def on_disk(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "tensors"
    path.write_bytes(written(tensors, {"watermark_us": "17"}))
    return path


def read(path: Path, **options: Any) -> dict[str, Tensor]:
    with path.open("rb", buffering=0) as file:
        return read_tensors(file, "the file", **options)


@pytest.mark.parametrize("mapped", [1, 1 << 30])
def test_mapped_and_copied_tensors_are_equal(mapped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mapped tensor outlives its file, takes no further memory, and writes to it do not reach the file."""
    monkeypatch.setattr(tensor_files, "_MAPPED", mapped)
    tensors = everything() | {"large": torch.randn(10_000, 7)}
    path = on_disk(tmp_path, tensors)
    before = path.read_bytes()
    tensors_read = read(path)
    assert path.read_bytes() == before
    path.unlink()
    assert tensors_read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert tensors_read[name].dtype == tensor.dtype
        assert tensors_read[name].untyped_storage().nbytes() == tensor.nbytes
        torch.testing.assert_close(tensors_read[name], tensor.detach(), rtol=0, atol=0)
        tensors_read[name].zero_()


@pytest.mark.parametrize("block", [1, 1 << 20])
def test_a_box_is_read_into_any_destination(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of any strides and dtype, and a few rows at a time."""
    monkeypatch.setattr(tensor_files, "_BLOCK", block)
    tensors = {"table": torch.randn(31, 7), "cube": torch.randn(3, 4, 5), "row": torch.randn(9)}
    tensors["scalar"] = torch.ones(())
    boxes = {"table": ((2, 1), (20, 4)), "cube": ((1, 0, 2), (2, 4, 3)), "row": ((4,), (5,)), "scalar": ((), ())}
    with on_disk(tmp_path, tensors).open("rb", buffering=0) as file:
        opened = TensorFile(file, "the file")
        for name, (offsets, sizes) in boxes.items():
            expected = tensors[name][tuple(slice(o, o + size) for o, size in zip(offsets, sizes, strict=True))]
            strided = torch.zeros(*sizes, 2)[..., 0]
            for destination in (torch.zeros(sizes), torch.zeros(sizes, dtype=torch.float64), strided):
                opened.read_box(name, offsets, destination)
                assert torch.equal(destination, expected.to(destination.dtype)), name
        rows = torch.zeros(4, 7)
        opened.read_box("table", (27, 0), rows)
        assert torch.equal(rows, tensors["table"][27:])
    assert read(tmp_path / "tensors", select="cube".__eq__).keys() == {"cube"}


@pytest.mark.parametrize("data", [b"", b"12345678", (1 << 40).to_bytes(8, "little") + b"{}", b"\2" + bytes(7) + b"[]"])
def test_another_file_is_an_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    path.write_bytes(data)
    with pytest.raises(exfm.RunError, match="the file: no safetensors file"):
        read(path)


def test_no_tensors_are_a_file_too() -> None:
    assert load(written({})) == {}
