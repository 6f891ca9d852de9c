"""Long histories: no tensor grows with the pairs of events, and computing in blocks does not change the results."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import exfm_plugins.encoders.hstu.blocks
from exfm.components import EncoderInputs, JaggedSequence
from exfm.registry.discovery import default_registry

attention = sys.modules["exfm.layers.jagged_attention"]  # the package has a function of that name
ENCODERS: dict[str, dict[str, Any]] = {
    "hstu": {"summary": "mean", "time_buckets": 64},
    "transformer": {"queries": [2_100, 30]},
    "pma": {},
    "din": {},
    "mean": {},
    "pyramid": {"queries": [2_000, 100]},
}
SMALL = [("hstu", {"summary": "target", "time_buckets": 64}), ("hstu", {}), ("transformer", {"queries": [30, 9]})]


class Largest(TorchDispatchMode):
    """Tracks the size of the largest tensor that an operation returns, in the backward pass too."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return result


def encoded(name: str, fields: dict[str, Any], lengths: list[int], dtype: torch.dtype) -> list[Tensor]:
    """Returns the summary, and the gradients of the events and of all parameters."""
    generator = torch.Generator().manual_seed(0)
    component = default_registry().resolve("sequence_encoder", name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inputs = EncoderInputs("history", 8, max(lengths), ("user", "item"), (1,), times=True)
        encoder = component(component.Config(**fields), inputs).to(dtype)
    events_ED = torch.randn(sum(lengths), 8, generator=generator, dtype=dtype, requires_grad=True)
    tokens_BND = torch.randn(len(lengths), 2, 8, generator=generator, dtype=dtype)
    ages_E = torch.randint(100_000_000, (sum(lengths),), generator=generator)
    sequence = JaggedSequence(events_ED, torch.tensor([0, *lengths]).cumsum(0), max(lengths), ages_E)
    summary = encoder(sequence, tokens_BND)
    leaves = [events_ED, *encoder.parameters()]
    gradients = torch.autograd.grad(summary.square().sum(), leaves, allow_unused=True, materialize_grads=True)
    return [summary, *gradients]


@pytest.mark.parametrize("name", ENCODERS)
def test_no_tensor_grows_with_the_pairs_of_events(name: str) -> None:
    """Two histories of 2,200 and more events have ten million pairs, for each head; 34 MB are eight million numbers."""
    with Largest() as largest:
        encoded(name, ENCODERS[name], [2_300, 3, 2_200], torch.float32)
    assert 0 < largest.bytes < 34_000_000


@pytest.mark.parametrize(("name", "fields"), SMALL, ids=["hstu", "newest", "recent"])
def test_blocks_do_not_change_the_results(name: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = [40, 0, 37, 1, 39, 12]
    whole = encoded(name, fields, lengths, torch.float64)
    for module in (attention, exfm_plugins.encoders.hstu.blocks):
        monkeypatch.setattr(module, "_WHOLE", 100)
        monkeypatch.setattr(module, "_BLOCK", 300)
    for expected, in_blocks in zip(whole, encoded(name, fields, lengths, torch.float64), strict=True):
        torch.testing.assert_close(in_blocks, expected, rtol=1e-10, atol=1e-12)
