"""Tensors written as safetensors read back as they were, by the library itself."""

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
from exfm.storage.tensor_files import read_tensors, write_tensors

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


def on_disk(folder: Path, tensors: dict[str, Tensor]) -> Path:
    path = folder / "tensors"
    path.write_bytes(written(tensors, {"watermark_us": "17"}))
    return path


def read(path: Path, **how: Any) -> dict[str, Tensor]:
    with path.open("rb", buffering=0) as file:
        return read_tensors(file, "the file", **how)


@pytest.mark.parametrize("mapped", [1, 1 << 30])
def test_it_is_read_as_it_was(mapped: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped and copied; what is mapped outlives its file, has no memory beside it, and is this process's own."""
    monkeypatch.setattr(tensor_files, "_MAPPED", mapped)
    tensors = everything() | {"large": torch.randn(10_000, 7)}
    path = on_disk(tmp_path, tensors)
    before = path.read_bytes()
    found = read(path)
    assert path.read_bytes() == before
    path.unlink()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].untyped_storage().nbytes() == tensor.nbytes
        torch.testing.assert_close(found[name], tensor.detach(), rtol=0, atol=0)
        found[name].zero_()


def test_a_tensor_is_read_into_memory_of_its_form_and_of_no_other(tmp_path: Path) -> None:
    tensors = {
        "same": torch.randn(300_000, 2),
        "longer": torch.randn(3),
        "other": torch.randn(3),
        "part": torch.ones(4),
    }
    path = on_disk(tmp_path, tensors)
    into = {"same": torch.zeros(300_000, 2), "longer": torch.zeros(4), "other": torch.zeros(3, dtype=torch.float64)}
    into["part"] = torch.zeros(4, 2)[:, 0]
    found = read(path, into=into)
    assert found["same"] is into["same"]
    assert [name for name in into if into[name].any()] == ["same"]
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
    assert read(path, wanted="longer".__eq__).keys() == {"longer"}


@pytest.mark.parametrize("data", [b"", b"12345678", (1 << 40).to_bytes(8, "little") + b"{}", b"\2" + bytes(7) + b"[]"])
def test_what_is_no_such_file_is_an_error(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tensors"
    path.write_bytes(data)
    with pytest.raises(exfm.RunError, match="the file: no safetensors file"):
        read(path)


def test_no_tensors_are_a_file_too() -> None:
    assert load(written({})) == {}
