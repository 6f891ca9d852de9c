"""Tests of a network's output and gradients: independent of other examples, deterministic and trainable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from exfm.interfaces.network import reads_times
from exfm.testing.examples import Examples
from exfm.testing.network import MAX_LENGTH, NetworkTests, check_bits, check_close
from exfm.testing.overlap import InterleavedCalls

_CALLS = 40
"""The largest number of calls that interrupt another call; more would take long for networks of many operations."""
_LEAST_SHARE = 0.1
"""The least ratio of the newest event's gradient to the oldest event's; with attention and recurrence it exceeds 1."""


class BehaviourTests(NetworkTests):
    """Tests of a network's output and gradients."""

    def test_output_is_as_declared(self, fields: Mapping[str, Any]) -> None:
        """The output has the declared width, which the heads are built for, and the dtype of the input."""
        for dtype in (torch.float32, torch.float64):
            module, examples = self.make(fields, dtype=dtype), self.examples().to(dtype)
            output, declared = self.run(module, examples), self.output_shape(module)
            expected = (examples.count, *declared)
            assert output.shape == expected, f"output is {tuple(output.shape)}, but {expected} is declared"
            assert output.dtype == dtype, f"inputs and parameters are {dtype}, the output is {output.dtype}"

    def test_output_is_finite(self, fields: Mapping[str, Any]) -> None:
        """Neither an empty history, as of new users, nor the longest history gives NaN or infinity."""
        output = self.run(self.make(fields), self.examples())
        finite = output.flatten(1).isfinite().all(1)
        assert finite.all(), f"examples {(~finite).nonzero().flatten().tolist()} of the batch are not finite"

    def test_nobody_has_a_history(self, fields: Mapping[str, Any]) -> None:
        """A batch without events, as at the start of a stream, has a finite output and finite gradients."""
        module, examples = self.make(fields), self.examples((0, 0, 0)).requires_grad()
        output = self.run(module, examples)
        assert output.isfinite().all(), "the output is not finite in a batch without any event"
        _check_finite(_gradients(module, examples, output))

    def test_order_of_examples_does_not_matter(self, fields: Mapping[str, Any]) -> None:
        """A prediction does not depend on the index of its example in the batch."""
        module, examples = self.make(fields), self.examples()
        rows = list(reversed(range(examples.count)))
        expected = self.run(module, examples)[torch.tensor(rows)]
        check_close(self.run(module, examples.take(rows)), expected, "the same examples in reverse order")

    def test_neighbours_do_not_matter(self, fields: Mapping[str, Any]) -> None:
        """A prediction does not depend on other examples of the batch, nor on the lengths of their histories.

        Otherwise a served prediction of a single request would differ from the prediction that was trained and scored
        in a batch, and labels could leak between examples.
        """
        module, examples = self.make(fields), self.examples()
        expected = self.run(module, examples)
        batches = {f"example {row} alone": [row] for row in range(examples.count)}
        batches["without the longest histories"] = [0, 1, 3, 4]
        for title, rows in batches.items():
            actual = self.run(module, examples.take(rows))
            check_close(actual, expected[torch.tensor(rows)], f"{title} against the whole batch")

    def test_batch_without_examples(self, fields: Mapping[str, Any]) -> None:
        """An empty batch has an empty output, because a process whose shard has ended still takes steps."""
        module, examples = self.make(fields), self.examples().take([]).requires_grad()
        output = self.run(module, examples)
        expected = (0, *self.run(module, self.examples()).shape[1:])
        assert output.shape == expected, f"of no example the output is {tuple(output.shape)} and not {expected}"
        _check_finite(_gradients(module, examples, output))

    def test_inputs_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """A network does not write to tokens and events, because other modules of the model read them."""
        examples = self.examples()
        sequences, tokens_BND = examples.sequences(), examples.tokens_BND.clone()
        with torch.no_grad():
            self.call(self.make(fields), tokens_BND, sequences)
        assert torch.equal(tokens_BND, examples.tokens_BND), "the tokens were changed in place"
        for name, sequence in examples.sequences().items():
            same = torch.equal(sequences[name].values_ED, sequence.values_ED)
            assert same, f"the events of {name!r} were changed in place"

    def test_training_is_evaluation(self, fields: Mapping[str, Any]) -> None:
        """Training and evaluation mode give the same output, because the forward pass that trains is also scored.

        So there is no dropout, no statistic over batches and no state that a forward pass changes.
        """
        module, examples = self.make(fields), self.examples()
        expected = self.run(module.eval(), examples)
        check_bits(self.run(module.train(), examples), expected, "training against evaluation mode")
        check_bits(self.run(module.eval(), examples), expected, "evaluation after a forward pass in training mode")

    def test_calls_may_overlap(self, fields: Mapping[str, Any]) -> None:
        """A call does not read state that a call in another thread wrote, because threads share large batches."""
        module, examples = self.make(fields), self.examples()
        first, second = examples.take([0, 1, 2]), examples.take([3, 4, 5])
        second_outputs = [self.run(module, second)]
        with InterleavedCalls(lambda: None, every=0) as counted:
            expected = self.run(module, first)
        every = counted.operations // _CALLS + 1
        with InterleavedCalls(lambda: second_outputs.append(self.run(module, second)), every=every):
            output = self.run(module, first)
        for interleaved in second_outputs[1:]:
            check_bits(interleaved, second_outputs[0], "called by two threads at once")
        check_bits(output, expected, "called by two threads at once")

    def test_one_seed_builds_one_network(self, fields: Mapping[str, Any]) -> None:
        """All randomness is drawn from torch's generator in the constructor, so that a run can be repeated."""
        first, second = self.run(self.make(fields), self.examples()), self.run(self.make(fields), self.examples())
        check_bits(second, first, "two components built under one seed")

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """A new component that loads ``state_dict()``, which a snapshot stores without pickle, predicts the same."""
        module, other = self.make(fields), self.make(fields, seed=1)
        other.load_state_dict(load(save(module.state_dict())))
        expected = self.run(module, self.examples())
        check_bits(self.run(other, self.examples()), expected, "state loaded into a component of another seed")

    def test_gradients_reach_every_parameter(self, fields: Mapping[str, Any]) -> None:
        """Every parameter and every sequence has a gradient; without it, it is not trained or not read."""
        module, examples = self.make_moved(fields), self.examples().requires_grad()
        gradients = _gradients(module, examples, self.run(module, examples))
        _check_finite(gradients)
        without = [name for name, _ in module.named_parameters() if not gradients[name][0].any()]
        for name in examples.events:
            if not torch.cat(gradients[f"events of {name!r}"]).any():
                without.append(name)
        assert not without, f"no gradient reaches {', '.join(without)}"

    def test_the_newest_event_counts(self, fields: Mapping[str, Any]) -> None:
        """The last event of a sequence, which is the newest, has a gradient that is not small beside the oldest's.

        ``JaggedSequence.positions`` is 0 for the newest event; ``recent`` keeps the newest events.
        """
        module, examples = self.make_moved(fields), self.examples((MAX_LENGTH,) * 6).requires_grad()
        gradients = _gradients(module, examples, self.run(module, examples))
        for name in examples.events:
            norms_T = torch.stack(gradients[f"events of {name!r}"]).norm(dim=2).mean(0)
            newest, oldest = norms_T[-1].item(), norms_T[0].item()
            assert newest > 0 or not norms_T.any(), (
                f"of {MAX_LENGTH} events of {name!r} the newest is not read, and older ones are; events are oldest "
                "first: sequence.recent(count) keeps the newest"
            )
            assert newest >= _LEAST_SHARE * oldest, (
                f"of {MAX_LENGTH} events of {name!r} the oldest has {oldest / newest:.0f} times the newest's gradient; "
                "events are oldest first: sequence.positions() is 0 for the newest"
            )

    def test_without_times(self, fields: Mapping[str, Any]) -> None:
        """A network works on a stream without times of events, or its constructor raises a ValueError."""
        try:
            module = self.make(fields, inputs=self.inputs_without_times())
        except ValueError:
            return
        output = self.run(module, self.examples().without_ages())
        assert output.isfinite().all(), "the output is not finite where events have no times"

    def test_times_are_read_as_declared(self, fields: Mapping[str, Any]) -> None:
        """Ages change the output exactly where ``reads_times`` is set; an exported model takes ages only then."""
        module, examples = self.make_moved(fields), self.examples()
        if not self.sequence_names:
            return
        if reads_times(module):
            younger = {name: [ages_T // 100 for ages_T in sequence] for name, sequence in examples.ages.items()}
            other = self.run(module, replace(examples, ages=younger))
            assert not torch.equal(other, self.run(module, examples)), "reads_times is set, and ages change nothing"
        else:
            output = self.run(module, examples.without_ages())
            check_bits(output, self.run(module, examples), "without ages, as reads_times is not set, against with them")


def _gradients(module: nn.Module, examples: Examples, output: Tensor) -> dict[str, list[Tensor]]:
    """Differentiates a random linear function of the output; zeros where it does not depend on a tensor.

    Returns:
        The gradients of each parameter by its name, of ``tokens``, and of the events of each sequence.
    """
    leaves = {name: [parameter] for name, parameter in module.named_parameters()} | {"tokens": [examples.tokens_BND]}
    leaves |= {f"events of {name!r}": list(events) for name, events in examples.events.items()}
    slopes = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    # An empty batch may give an output that depends on nothing.
    output = output if output.requires_grad else output.detach().requires_grad_()
    tensors = list(chain.from_iterable(leaves.values()))
    gradients = iter(torch.autograd.grad(output, tensors, slopes, allow_unused=True, materialize_grads=True))
    return {name: list(islice(gradients, len(group))) for name, group in leaves.items()}


def _check_finite(gradients: Mapping[str, list[Tensor]]) -> None:
    wrong: list[str] = []
    for name, group in gradients.items():
        if not all(gradient.isfinite().all() for gradient in group):
            wrong.append(name)
    assert not wrong, f"the gradient is not finite: {', '.join(wrong)}"
