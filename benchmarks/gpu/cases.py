"""Every built-in backbone and encoder, in sizes that fill a GPU, and their inputs; torch is all that they need.

Legend: B examples, N tokens, D width, E events of all examples, R width of the representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import exfm
from exfm.components import BackboneInputs, ComponentSpec, EncoderInputs, JaggedSequence, SequenceShape
from exfm_plugins.backbones import exfm_register_backbones
from exfm_plugins.encoders import exfm_register_sequence_encoders

TASKS = ("click", "conversion")
HISTORY = "history"


@dataclass(frozen=True)
class Size:
    """Sizes of inputs and layers.

    Attributes:
        batch: B.
        tokens: N.
        dim: D.
        wide: width of a hidden layer.
        longest: the longest history, in events.
        layers: layers of a deep network.
    """

    batch: int
    tokens: int
    dim: int
    wide: int
    longest: int
    layers: int

    def fields(self) -> dict[str, dict[str, Any]]:
        """Returns the fields of each backbone, by name."""
        wide, half, heads = self.wide, self.wide // 2, 4
        fmb = self.tokens // 2
        wukong = {
            "layers": self.layers,
            "num_fmb_tokens": fmb,
            "num_lcb_tokens": fmb,
            "k": fmb,
            "fmb_hidden": (wide,),
            "head_hidden": (half,),
        }
        inside = {**wukong, "layers": 1}
        hidden = (wide, wide, half)
        return {
            "dcn_v2": {"layers": 2, "hidden": (wide, half), "input_norm": "layer_norm"},
            "deepfm": {"hidden": hidden},
            "dhen": {
                "layers": 2,
                "num_tokens": fmb,
                "dot_hidden": (wide,),
                "cross_rank": half,
                "head_hidden": (half,),
                "heads": heads,
            },
            "dlrm": {"hidden": hidden},
            "gem": {
                "layers": 2,
                "interaction": spec("backbone", "wukong", inside),
                "encoder": spec("sequence_encoder", "pyramid", {"heads": heads}),
                "heads": heads,
                "domain_hidden": half,
                "head_hidden": (half,),
            },
            "interformer": {
                "layers": 2,
                "interaction": spec("backbone", "wukong", inside),
                "heads": heads,
                "head_hidden": (half,),
            },
            "mlp": {"hidden": hidden},
            "mmoe": {"experts": 4, "expert": spec("backbone", "mlp", {"hidden": (half, half)})},
            "ple": {"levels": 2, "hidden": (half, half // 2)},
            "pyramid": {"heads": heads, "interaction": spec("backbone", "wukong", wukong)},
            "two_tower": {"item": tuple(self.token_names()[fmb:]), "hidden": (wide, wide), "output": self.dim},
            "wukong": wukong,
        }

    def token_names(self) -> tuple[str, ...]:
        """Returns the names of the N tokens."""
        return ("dense", *(f"feature{number}" for number in range(1, self.tokens)))


FULL = Size(batch=4096, tokens=32, dim=256, wide=4096, longest=256, layers=4)
"""About 0.05 to 0.5 GFLOP an example and pass, and the activations of the largest below 60 GB."""

SMALL = Size(batch=512, tokens=16, dim=16, wide=128, longest=64, layers=2)
"""A student as it is served: its kernels are short, so a GPU waits for Python."""

TINY = Size(batch=6, tokens=4, dim=8, wide=16, longest=12, layers=1)
"""Checks a script on a CPU."""


def _import(module: str, attribute: str) -> Any:
    return getattr(import_module(module), attribute)


def _classes(offers: Iterable[exfm.LazyComponent | type[Any]]) -> dict[str, Callable[[], Any]]:
    """Returns functions that import the classes of a plugin's components, by name."""
    classes: dict[str, Callable[[], Any]] = {}
    for offer in offers:
        assert isinstance(offer, exfm.LazyComponent)
        module, _, attribute = offer.target.partition(":")
        classes[offer.name] = partial(_import, module, attribute)
    return classes


_CLASSES = {
    "backbone": _classes(exfm_register_backbones()),
    "sequence_encoder": _classes(exfm_register_sequence_encoders()),
}
BACKBONES = tuple(_CLASSES["backbone"])
ENCODERS = tuple(_CLASSES["sequence_encoder"])


def spec(kind: str, name: str, fields: Mapping[str, Any]) -> ComponentSpec:
    """Returns a built-in component with its config, without the registry, which knows installed plugins only."""
    component = _CLASSES[kind][name]()
    return ComponentSpec(kind, name, component, component.Config(**fields))


@dataclass(frozen=True)
class Case:
    """A network with inputs of B examples.

    Attributes:
        module: maps ``inputs`` to the representation.
        batch: B.
        leaves: the inputs that get gradients, as tables would.
    """

    module: nn.Module
    batch: int
    inputs: tuple[Any, ...]
    leaves: tuple[Tensor, ...]

    def forward(self) -> Tensor:
        """Computes the output in bf16 autocast, as ``precision: bf16`` does."""
        with torch.autocast(self.leaves[0].device.type, torch.bfloat16):
            output: Tensor = self.module(*self.inputs)
        return output.float()

    @property
    def backbone(self) -> exfm.Backbone:
        """Returns the module, which is a backbone."""
        assert isinstance(self.module, exfm.Backbone)
        return self.module

    def clear_gradients(self) -> None:
        """Drops the gradients of parameters and inputs."""
        for tensor in (*self.module.parameters(), *self.leaves):
            tensor.grad = None

    def step(self) -> None:
        """Runs forward and backward pass; gradients replace those of the step before."""
        self.clear_gradients()
        self.forward().square().mean().backward()  # type: ignore[no-untyped-call]


def backbone_case(name: str, size: Size, device: torch.device) -> Case:
    """Builds a backbone of a size, with tokens and, where it reads them, histories."""
    torch.manual_seed(0)
    chosen = spec("backbone", name, size.fields()[name])
    sequences: dict[str, JaggedSequence] = {}
    tokens_BND = torch.randn(size.batch, size.tokens, size.dim, device=device, requires_grad=True)
    leaves = [tokens_BND]
    if chosen.component.consumes_sequences:
        sequences[HISTORY] = history(lengths("exponential", size.batch, size.longest), size, device)
        leaves.append(sequences[HISTORY].values_ED)
    shapes = tuple(SequenceShape(key, size.longest, (1,)) for key in sequences)
    module = chosen.build(BackboneInputs(size.token_names(), size.dim, shapes, TASKS)).to(device)
    return Case(module, size.batch, (tokens_BND, sequences), tuple(leaves))


def encoder_case(name: str, fields: Mapping[str, Any], size: Size, events: JaggedSequence) -> Case:
    """Builds an encoder for a history, with context tokens of which the second is the candidate item."""
    torch.manual_seed(0)
    device = events.values_ED.device
    inputs = EncoderInputs(HISTORY, size.dim, events.max_length, size.token_names(), (1,))
    module = spec("sequence_encoder", name, fields).build(inputs).to(device)
    context_BND = torch.randn(events.batch_size, size.tokens, size.dim, device=device, requires_grad=True)
    return Case(module, events.batch_size, (events, context_BND), (events.values_ED, context_BND))


def lengths(distribution: str, batch: int, longest: int) -> Tensor:
    """Draws the lengths of B histories, of which a single history at least has the longest.

    Args:
        distribution: exponential with a mean of an eighth of the longest; uniform from 1 to the longest; full: all
            have the longest.
    """
    generator = torch.Generator().manual_seed(0)
    if distribution == "exponential":
        drawn_B = torch.empty(batch).exponential_(8 / longest, generator=generator).ceil().clamp(1, longest).long()
    elif distribution == "uniform":
        drawn_B = torch.randint(1, longest + 1, (batch,), generator=generator)
    else:
        drawn_B = torch.full((batch,), longest)
    drawn_B[0] = longest
    return drawn_B


def history(lengths_B: Tensor, size: Size, device: torch.device) -> JaggedSequence:
    """Makes histories of lengths; their events get gradients."""
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths_B.cumsum(0)]).to(device)
    values_ED = torch.randn(int(lengths_B.sum()), size.dim, device=device, requires_grad=True)
    return JaggedSequence(values_ED, offsets, size.longest)
