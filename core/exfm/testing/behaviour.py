"""What a network computes: from each example alone, the same in training and evaluation, and trainable throughout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from exfm.interfaces.network import reads_times
from exfm.testing.examples import Examples
from exfm.testing.network import MAX_LENGTH, NetworkTests, check_bits, check_close
from exfm.testing.overlap import Between

# How many whole calls another one is interrupted by, at most.
_CALLS = 40
_LEAST_SHARE = 0.1
"""How large the newest event's gradient must be beside the oldest's; attention and recurrence give it more."""


class BehaviourTests(NetworkTests):
    """Tests of a network's output and gradients."""

    def test_output_is_as_declared(self, fields: Mapping[str, Any]) -> None:
        """The rest of the model is built from the width the component declares, and runs in the input's precision."""
        for dtype in (torch.float32, torch.float64):
            module, examples = self.make(fields, dtype=dtype), self.examples().to(dtype)
            output, declared = self.run(module, examples), self.output_shape(module)
            expected = (examples.count, *declared)
            assert output.shape == expected, f"output is {tuple(output.shape)}, but {expected} is declared"
            assert output.dtype == dtype, f"inputs and parameters are {dtype}, the output is {output.dtype}"

    def test_output_is_finite(self, fields: Mapping[str, Any]) -> None:
        """New users have no history; neither they nor the longest history may give NaN or infinity."""
        output = self.run(self.make(fields), self.examples())
        finite = output.flatten(1).isfinite().all(1)
        assert finite.all(), f"examples {(~finite).nonzero().flatten().tolist()} of the batch are not finite"

    def test_nobody_has_a_history(self, fields: Mapping[str, Any]) -> None:
        """A batch without a single event, as at a stream's start, must train like any other."""
        module, examples = self.make(fields), self.examples((0, 0, 0)).requires_grad()
        output = self.run(module, examples)
        assert output.isfinite().all(), "the output is not finite in a batch without any event"
        _check_finite(_gradients(module, examples, output))

    def test_order_of_examples_does_not_matter(self, fields: Mapping[str, Any]) -> None:
        """A prediction must not depend on an example's place in the batch."""
        module, examples = self.make(fields), self.examples()
        rows = list(reversed(range(examples.count)))
        expected = self.run(module, examples)[torch.tensor(rows)]
        check_close(self.run(module, examples.take(rows)), expected, "the same examples in reverse order")

    def test_neighbours_do_not_matter(self, fields: Mapping[str, Any]) -> None:
        """A prediction must not depend on who else is in the batch, nor on how long their histories are.

        What is served one request at a time is then what was trained and scored in batches, and a label cannot leak
        from one example to another.
        """
        module, examples = self.make(fields), self.examples()
        expected = self.run(module, examples)
        batches = {f"example {row} alone": [row] for row in range(examples.count)}
        batches["without the longest histories"] = [0, 1, 3, 4]
        for what, rows in batches.items():
            actual = self.run(module, examples.take(rows))
            check_close(actual, expected[torch.tensor(rows)], f"{what} against the whole batch")

    def test_batch_without_examples(self, fields: Mapping[str, Any]) -> None:
        """The last batch of a shard may be empty, and its process must still take part in the step."""
        module, examples = self.make(fields), self.examples().take([]).requires_grad()
        output = self.run(module, examples)
        expected = (0, *self.run(module, self.examples()).shape[1:])
        assert output.shape == expected, f"of no example the output is {tuple(output.shape)} and not {expected}"
        _check_finite(_gradients(module, examples, output))

    def test_inputs_are_left_alone(self, fields: Mapping[str, Any]) -> None:
        """Other parts of the model read the same tokens and events: a network must not write into them."""
        examples = self.examples()
        sequences, tokens_BND = examples.sequences(), examples.tokens_BND.clone()
        with torch.no_grad():
            self.call(self.make(fields), tokens_BND, sequences)
        assert torch.equal(tokens_BND, examples.tokens_BND), "the tokens were changed in place"
        for name, sequence in examples.sequences().items():
            same = torch.equal(sequences[name].values_ED, sequence.values_ED)
            assert same, f"the events of {name!r} were changed in place"

    def test_training_is_evaluation(self, fields: Mapping[str, Any]) -> None:
        """On a stream that is seen once, the forward pass that trains is also the prediction that is scored.

        So there is no dropout and no statistic over batches, and a forward pass leaves no trace.
        """
        module, examples = self.make(fields), self.examples()
        expected = self.run(module.eval(), examples)
        check_bits(self.run(module.train(), examples), expected, "training against evaluation mode")
        check_bits(self.run(module.eval(), examples), expected, "evaluation after a forward pass in training mode")

    def test_calls_may_overlap(self, fields: Mapping[str, Any]) -> None:
        """Threads share a large batch: none may find in the module what another one's call has left there."""
        module, examples = self.make(fields), self.examples()
        own, other = (examples.take(rows) for rows in ([0, 1, 2], [3, 4, 5]))
        others = [self.run(module, other)]
        with Between(lambda: None, every=0) as alone:
            expected = self.run(module, own)
        with Between(lambda: others.append(self.run(module, other)), every=alone.operations // _CALLS + 1):
            output = self.run(module, own)
        for found in others[1:]:
            check_bits(found, others[0], "called by two threads at once")
        check_bits(output, expected, "called by two threads at once")

    def test_one_seed_builds_one_network(self, fields: Mapping[str, Any]) -> None:
        """A run repeats: all randomness is drawn from torch's generator when the component is built."""
        first, second = self.run(self.make(fields), self.examples()), self.run(self.make(fields), self.examples())
        check_bits(second, first, "two components built under one seed")

    def test_saved_state_is_the_whole_state(self, fields: Mapping[str, Any]) -> None:
        """A snapshot keeps ``state_dict()`` without pickle; a component built anew and given it predicts the same."""
        module, other = self.make(fields), self.make(fields, seed=1)
        other.load_state_dict(load(save(module.state_dict())))
        expected = self.run(module, self.examples())
        check_bits(self.run(other, self.examples()), expected, "state loaded into a component of another seed")

    def test_gradients_reach_every_parameter(self, fields: Mapping[str, Any]) -> None:
        """A parameter without gradient does not learn; a sequence without gradient is not read."""
        module, examples = self.make_moved(fields), self.examples().requires_grad()
        gradients = _gradients(module, examples, self.run(module, examples))
        _check_finite(gradients)
        without = [name for name, _ in module.named_parameters() if not gradients[name][0].any()]
        without += [name for name in examples.events if not any(one.any() for one in gradients[f"events of {name!r}"])]
        assert not without, f"no gradient reaches {', '.join(without)}"

    def test_the_newest_event_counts(self, fields: Mapping[str, Any]) -> None:
        """A sequence's last event is its newest: who keeps a few events, or weighs them by age, must not lose that one.

        ``JaggedSequence.positions`` counts from the newest event, which has 0; ``recent`` keeps the newest ones.
        """
        module, examples = self.make_moved(fields), self.examples((MAX_LENGTH,) * 6).requires_grad()
        gradients = _gradients(module, examples, self.run(module, examples))
        for name in examples.events:
            of_events_T = torch.stack(gradients[f"events of {name!r}"]).norm(dim=2).mean(0)
            newest, oldest = of_events_T[-1].item(), of_events_T[0].item()
            assert newest > 0 or not of_events_T.any(), (
                f"of {MAX_LENGTH} events of {name!r} the newest is not read, and older ones are; events are oldest "
                "first: sequence.recent(count) keeps the newest"
            )
            assert newest >= _LEAST_SHARE * oldest, (
                f"of {MAX_LENGTH} events of {name!r} the oldest has {oldest / newest:.0f} times the newest's gradient; "
                "events are oldest first: sequence.positions() is 0 for the newest"
            )

    def test_without_times(self, fields: Mapping[str, Any]) -> None:
        """A stream need not say when events happened: a network does without, or refuses with a ValueError."""
        try:
            module = self.make(fields, inputs=self.inputs_without_times())
        except ValueError:
            return
        output = self.run(module, self.examples().without_ages())
        assert output.isfinite().all(), "the output is not finite where events have no times"

    def test_times_are_read_as_declared(self, fields: Mapping[str, Any]) -> None:
        """Events have ages where a component says ``reads_times``, and the exported model asks for them only then."""
        module, examples = self.make_moved(fields), self.examples()
        if not self.sequence_names:
            return
        if reads_times(module):
            younger = {name: [ages_T // 100 for ages_T in of_each] for name, of_each in examples.ages.items()}
            other = self.run(module, replace(examples, ages=younger))
            assert not torch.equal(other, self.run(module, examples)), "reads_times is set, and ages change nothing"
        else:
            output = self.run(module, examples.without_ages())
            check_bits(output, self.run(module, examples), "without ages, as reads_times is not set, against with them")


def _gradients(module: nn.Module, examples: Examples, output: Tensor) -> dict[str, list[Tensor]]:
    """Of a random linear function of the output, by what they belong to; zeros where it does not depend on that."""
    leaves = {name: [parameter] for name, parameter in module.named_parameters()} | {"tokens": [examples.tokens_BND]}
    leaves |= {f"events of {name!r}": list(events) for name, events in examples.events.items()}
    slopes = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    # An empty batch may give an output that depends on nothing.
    output = output if output.requires_grad else output.detach().requires_grad_()
    every = [leaf for of_one in leaves.values() for leaf in of_one]
    found = iter(torch.autograd.grad(output, every, slopes, allow_unused=True, materialize_grads=True))
    return {name: list(islice(found, len(of_one))) for name, of_one in leaves.items()}


def _check_finite(gradients: Mapping[str, list[Tensor]]) -> None:
    wrong = [name for name, of_one in gradients.items() if not all(gradient.isfinite().all() for gradient in of_one)]
    assert not wrong, f"the gradient is not finite: {', '.join(wrong)}"
