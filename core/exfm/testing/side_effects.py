"""Tests of a network's side effects: on seeds, settings, memory and devices; and of its use of names."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
import torch
from torch import Tensor

from exfm.testing.names import renamings, with_names
from exfm.testing.network import NetworkTests, check_bits
from exfm.testing.operations import Elsewhere, Operations, plain_tensors


class SideEffectTests(NetworkTests):
    """Tests that building and calling a network has no side effects."""

    def test_names_do_not_decide(self, fields: Mapping[str, Any]) -> None:
        """The names of features do not change the network, as they would if it iterated a set of names.

        A set of strings has another order in each process, so processes would disagree on the order of parameters.
        """
        names, expected = self._names_and_output(fields)
        for ending, renamed in renamings(self.tokens, self.sequence_names):
            other_fields = {key: with_names(value, renamed) for key, value in fields.items()}
            try:
                others, output = self.called(renamed)._names_and_output(other_fields)
            except Exception as error:
                pytest.skip(f"it wants features of certain names: {type(error).__name__}: {error}")
            pairs = zip(names, others, strict=True)
            differ = [(name, other) for name, other in pairs if name != other.replace(ending, "")]
            why = "its features have other names; go through names in the order of the inputs, never in a set's"
            assert not differ, f"{differ[0][1]} comes in place of {differ[0][0]} where {why}"
            if not torch.equal(output, expected) and not torch.equal(self._names_and_output(fields)[1], expected):
                pytest.skip("built again it is another one, whatever features are called")
            check_bits(output, expected, f"where {why}")

    def _names_and_output(self, fields: Mapping[str, Any]) -> tuple[list[str], Tensor]:
        module = self.make(fields)
        with torch.no_grad():
            return list(module.state_dict()), self.run(module, self.examples((3, 5)))

    def test_the_seed_is_the_runs(self, fields: Mapping[str, Any]) -> None:
        """A component does not seed torch's generator, which would replace the run's seed for all later components."""
        with noticed("manual_seed") as seeded, torch.random.fork_rng(devices=[]):
            after = []
            for state in _two_states():
                torch.set_rng_state(state)
                module = self.build(fields)
                after.append(torch.get_rng_state())
            assert not seeded, "its constructor calls torch.manual_seed; draw from torch's generator as it is"
            assert not torch.equal(*after), "after its constructor, torch's random numbers no longer depend on the seed"
            self.run(module.double().eval(), self.examples())
            drawn = seeded or not torch.equal(torch.get_rng_state(), after[-1])
            assert not drawn, "a call draws random numbers, or seeds torch's generator: a prediction must not"

    def test_settings_of_the_process_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """A component does not set threads, the default dtype and the like, because they hold for the whole process."""
        with settings_checked(self.component):
            module = self.build(fields).double()
            torch.autograd.backward(self.run(module, self.examples().requires_grad()).sum())

    def test_a_call_leaves_nothing_behind(self, fields: Mapping[str, Any]) -> None:
        """A call keeps no tensors of its batch or graph, which would take memory during the next call.

        A call may cache tensors that later calls use again, such as a mask of this size.
        """
        module, examples = self.make(fields), self.examples().requires_grad()
        self.run(module, examples)  # fills caches
        with Operations() as operations:
            self.run(module, examples)
        lasting = [*module.parameters(), *module.buffers(), examples.tokens_BND]
        lasting += list(chain.from_iterable(examples.events.values()))
        # Only on demand, because a collection takes long; cycles are no fault.
        if operations.left(lasting):
            gc.collect()
        left = operations.left(lasting)
        assert not left, f"of a call that is over, the result of {left[0]} is still in memory; keep nothing of a batch"

    def test_runs_on_the_inputs_device(self, fields: Mapping[str, Any]) -> None:
        """A call works on an accelerator: no tensor stays on the CPU, where operations with others would fail."""
        module, examples = self.make(fields), self.examples()
        plain = list(plain_tensors(module))
        assert not plain, f"{plain[0]} stays where it was made; register_buffer(..., persistent=False) lets it move"
        tokens_BND, sequences = examples.tokens_BND, examples.sequences()
        with torch.no_grad(), Elsewhere() as elsewhere:
            output = self.call(module, tokens_BND, sequences)
        hint = "make tensors with device=x.device, or by x.new_zeros and the like"
        assert not elsewhere.met, (
            f"{elsewhere.met[0]} is given a tensor on the CPU and one on the input's device; {hint}"
        )
        assert not elsewhere.stays(output), f"the output is on the CPU wherever the input is; {hint}"


def _two_states() -> list[Tensor]:
    """Returns states of torch's generator for two seeds."""
    return [torch.Generator().manual_seed(seed).get_state() for seed in (0, 1)]


@contextmanager
def noticed(name: str) -> Iterator[list[Any]]:
    """Records the arguments of calls of a function of torch."""
    values: list[Any] = []
    original = getattr(torch, name)

    def record(value: Any) -> Any:
        values.append(value)
        return original(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, name, record)
        yield values


@contextmanager
def settings_checked(component: type[Any]) -> Iterator[None]:
    """Raises AssertionError where a setting of the process has changed, and restores it."""
    threads, before = torch.get_num_threads(), _settings()
    try:
        # Calls are recorded too, because the number may be set to its present value.
        with noticed("set_num_threads") as set_to:
            yield
        after = _settings()
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(before["default type"])
        torch.set_grad_enabled(before["gradient mode"])
    changed = [f"{setting} to {value}" for setting, value in after.items() if value != before[setting]]
    changed += [f"number of threads to {value}" for value in set_to[:1]]
    assert not changed, f"{component.__qualname__} sets torch's {changed[0]} for the whole process; leave it to the run"


def _settings() -> dict[str, Any]:
    return {
        "number of threads": torch.get_num_threads(),
        "default type": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "precision of matrix products": torch.get_float32_matmul_precision(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
    }
