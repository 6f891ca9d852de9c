"""How the kit builds a network and calls it: what differs between a backbone and a sequence encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence
from exfm.testing.component import ComponentTests
from exfm.testing.examples import Examples, random_examples

MAX_LENGTH = 50
_LENGTHS = (0, 7, MAX_LENGTH, 0, 12, 1)


class NetworkTests(ComponentTests):
    """Base of the tests of components that are networks. Its attributes may be overridden.

    Attributes:
        tokens: names of the tokens that a backbone gets, or an encoder for context.
        dim: width of tokens and events.
        supports_export: True, or the reason why ``torch.export`` cannot capture the component.
    """

    tokens: ClassVar[tuple[str, ...]] = ("dense", "user", "item", "shop")
    dim: ClassVar[int] = 8
    supports_export: ClassVar[bool | str] = True
    _refused: ClassVar[Mapping[str, Exception]] = {}

    @property
    @abstractmethod
    def sequence_names(self) -> tuple[str, ...]:
        """The sequences that the component reads."""

    @abstractmethod
    def inputs(self, max_length: int) -> Any:
        """What the component's constructor takes besides its config."""

    @abstractmethod
    def inputs_without_times(self) -> Any:
        """The same of a stream that does not say when events happened."""

    @abstractmethod
    def call(self, module: nn.Module, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """The component's output."""

    @abstractmethod
    def output_shape(self, module: Any) -> tuple[int, ...]:
        """What the component says of its output for an example."""

    def make(
        self,
        fields: Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        max_length: int = MAX_LENGTH,
        inputs: Any = None,
    ) -> Any:
        """The component, built under a seed, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(fields, inputs=inputs, max_length=max_length).to(dtype).eval()

    def build(self, fields: Mapping[str, Any], *, inputs: Any = None, max_length: int = MAX_LENGTH) -> Any:
        """The component.

        Where it cannot be built as a stream needs it, one test says so, and the others of this config are skipped.
        """
        config = self.config(fields)
        refused, which = vars(type(self)).get("_refused", {}), repr(config)
        if which in refused:
            pytest.skip(f"it cannot be built with these fields: {refused[which]}")
        try:
            return self.component(config, inputs or self.inputs(max_length))
        except Exception as error:
            if inputs is None and torch.get_default_device().type == "cpu":
                type(self)._refused = {**refused, which: error}
            raise

    @abstractmethod
    def called(self, names: Mapping[str, str]) -> Self:
        """These tests where features and sequences are called otherwise."""

    def make_moved(self, fields: Mapping[str, Any]) -> Any:
        """The component with noise added to its parameters: what is zero at initialisation only is no longer."""
        module, generator = self.make(fields), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return module

    def examples(self, lengths: tuple[int, ...] = _LENGTHS, *, max_length: int = MAX_LENGTH) -> Examples:
        """Random examples; as many events as ``lengths`` says, a second sequence in another order.

        By default the longest history is as long as can be, and two users have no history of any kind.
        """
        half = len(lengths) // 2
        turned = {
            name: lengths[half * place % len(lengths) :] + lengths[: half * place % len(lengths)]
            for place, name in enumerate(self.sequence_names)
        }
        return random_examples(len(lengths), len(self.tokens), self.dim, turned, max_length=max_length)

    def run(self, module: nn.Module, examples: Examples) -> Tensor:
        """The component's output for some examples."""
        return self.call(module, examples.tokens_BND, examples.sequences())


def check_bits(actual: Tensor, expected: Tensor, why: str) -> None:
    """Raises AssertionError unless both are equal bit for bit."""
    if not torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)):
        difference = (actual - expected).abs().max().item() if actual.shape == expected.shape else "in shape"
        raise AssertionError(f"{why}: the outputs differ ({difference})")


def check_close(actual: Tensor, expected: Tensor, why: str) -> None:
    """Raises AssertionError unless both are equal but for float64 rounding."""

    def message(details: str) -> str:
        return f"{why}: the outputs differ.\n{details}"

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, equal_nan=True, msg=message)
