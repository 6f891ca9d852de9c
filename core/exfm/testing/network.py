"""NetworkTests: builds and calls the component in tests of backbones and of sequence encoders."""

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
        tokens: names of a backbone's tokens, or of an encoder's context tokens.
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
        """Returns the argument of the constructor besides the config."""

    @abstractmethod
    def inputs_without_times(self) -> Any:
        """Returns the same for a stream without times of events."""

    @abstractmethod
    def call(self, module: nn.Module, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        """Calls the component."""

    @abstractmethod
    def output_shape(self, module: Any) -> tuple[int, ...]:
        """Returns the shape that the component declares for the output of an example."""

    def make(
        self,
        fields: Mapping[str, Any],
        *,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        max_length: int = MAX_LENGTH,
        inputs: Any = None,
    ) -> Any:
        """Builds the component under a seed, in evaluation mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.build(fields, inputs=inputs, max_length=max_length).to(dtype).eval()

    def build(self, fields: Mapping[str, Any], *, inputs: Any = None, max_length: int = MAX_LENGTH) -> Any:
        """Builds the component.

        Where the constructor fails for ordinary inputs, a single test of the config fails and the others are skipped.
        """
        config = self.config(fields)
        # Of this class alone, as subclasses have other inputs. By repr, because a config may not be hashable.
        refused, key = vars(type(self)).get("_refused", {}), repr(config)
        if key in refused:
            pytest.skip(f"it cannot be built with these fields: {refused[key]}")
        try:
            return self.component(config, inputs or self.inputs(max_length))
        except Exception as error:
            if inputs is None and torch.get_default_device().type == "cpu":
                type(self)._refused = {**refused, key: error}
            raise

    @abstractmethod
    def called(self, names: Mapping[str, str]) -> Self:
        """Returns these tests with other names for features and sequences."""

    def make_moved(self, fields: Mapping[str, Any]) -> Any:
        """Builds the component and adds noise to its parameters, because a zero parameter would hide gradients."""
        module, generator = self.make(fields), torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        return module

    def examples(self, lengths: tuple[int, ...] = _LENGTHS, *, max_length: int = MAX_LENGTH) -> Examples:
        """Draws examples with so many events; the lengths of a second sequence are rotated by half of the batch.

        By default a history has the greatest length, and two examples have no events in any sequence.
        """
        rotated: dict[str, tuple[int, ...]] = {}
        for index, name in enumerate(self.sequence_names):
            first = len(lengths) // 2 * index % len(lengths)
            rotated[name] = lengths[first:] + lengths[:first]
        return random_examples(len(lengths), len(self.tokens), self.dim, rotated, max_length=max_length)

    def run(self, module: nn.Module, examples: Examples) -> Tensor:
        """Calls the component with some examples."""
        return self.call(module, examples.tokens_BND, examples.sequences())


def check_bits(actual: Tensor, expected: Tensor, why: str) -> None:
    """Raises AssertionError unless both are equal bit for bit."""
    # As bytes, because NaN is not equal to NaN and -0 is equal to 0.
    if not torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)):
        difference = (actual - expected).abs().max().item() if actual.shape == expected.shape else "in shape"
        raise AssertionError(f"{why}: the outputs differ ({difference})")


def check_close(actual: Tensor, expected: Tensor, why: str) -> None:
    """Raises AssertionError unless both are equal up to float64 rounding."""

    def message(details: str) -> str:
        return f"{why}: the outputs differ.\n{details}"

    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12, equal_nan=True, msg=message)
