"""Sequence encoders with a fault each, and the test of the kit that reports it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.testing.sound import SoundEncoder, failures, padded, total


class DividesByZero(SoundEncoder):
    def forward(self, sequence, context_BND):
        return (total(sequence.with_values(self.linear(sequence.values_ED))) / sequence.lengths.unsqueeze(1)).unsqueeze(
            1
        )


class SteepAtZero(SoundEncoder):
    """Finite, but its gradient where there is no event is not."""

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, sequence, context_BND):
        return super().forward(sequence, context_BND) + (self.scale * total(sequence).square()).sqrt().unsqueeze(1)


class DividesByTheLongest(SoundEncoder):
    def forward(self, sequence, context_BND):
        longest = max(sequence.lengths.tolist(), default=0)
        return total(sequence.with_values(self.linear(sequence.values_ED))).unsqueeze(1) / max(longest, 1)


class PadsToTheLongest(SoundEncoder):
    def forward(self, sequence, context_BND):
        events = padded(sequence, max(sequence.lengths.tolist(), default=0))
        return self.linear(events).sum(1, keepdim=True) * 0 + super().forward(sequence, context_BND)


class PadsToTheMost(SoundEncoder):
    def forward(self, sequence, context_BND):
        return self.linear(padded(sequence, sequence.max_length)).sum(1, keepdim=True)


class NeedsExamples(SoundEncoder):
    def forward(self, sequence, context_BND):
        sequence.lengths.max()
        return super().forward(sequence, context_BND)


class NeedsATarget(SoundEncoder):
    def forward(self, sequence, context_BND):
        return super().forward(sequence, context_BND) + context_BND[:, self.inputs.targets[0], None]


class RefusesWithoutATarget(NeedsATarget):
    def __init__(self, config, inputs):
        if not inputs.targets:
            raise ValueError("it needs a token that shares a table with the sequence")
        super().__init__(config, inputs)


class IgnoresTheEvents(SoundEncoder):
    def forward(self, sequence, context_BND):
        return self.linear(context_BND[:, :1])


class TwoTokens(SoundEncoder):
    num_tokens = 2


class WritesIntoEvents(SoundEncoder):
    def forward(self, sequence, context_BND):
        sequence.values_ED.detach().clamp_(-1, 1)
        return super().forward(sequence, context_BND)


class PositionsWithoutTheLast(SoundEncoder):
    """Its table of positions lacks a row for the oldest event of the longest history."""

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.positions = nn.Embedding(inputs.max_length - 1, inputs.dim)

    def forward(self, sequence, context_BND):
        placed = sequence.with_values(sequence.values_ED + self.positions(sequence.positions()))
        return super().forward(placed, context_BND)


class KeepsTheOldest(SoundEncoder):
    """It cuts a long history at its wrong end."""

    def forward(self, sequence, context_BND):
        starts = sequence.offsets[:-1][sequence.example_index()]
        age = torch.arange(len(sequence.values_ED), device=starts.device) - starts
        kept = sequence.with_values(sequence.values_ED * (age < 20).unsqueeze(1))
        return super().forward(kept, context_BND)


class WeighsTheOldest(SoundEncoder):
    """It takes the first event for the newest."""

    def forward(self, sequence, context_BND):
        starts = sequence.offsets[:-1][sequence.example_index()]
        age = torch.arange(len(sequence.values_ED), device=starts.device) - starts
        return super().forward(sequence.with_values(sequence.values_ED / (1 + age).unsqueeze(1)), context_BND)


class WeighsTheNewest(SoundEncoder):
    """Nothing is wrong: the older an event, the less it counts."""

    def forward(self, sequence, context_BND):
        weight_E1 = 0.9 ** sequence.positions().unsqueeze(1)
        return super().forward(sequence.with_values(sequence.values_ED * weight_E1), context_BND)


class ComparesEvents(SoundEncoder):
    """All events of the batch meet each other, and a mask takes off those of other examples."""

    def forward(self, sequence, context_BND):
        example = sequence.example_index()
        same_EE = (example.unsqueeze(0) == example.unsqueeze(1)).to(sequence.values_ED.dtype)
        counts_E1 = same_EE.sum(1, keepdim=True)
        return super().forward(sequence.with_values(same_EE @ sequence.values_ED / counts_E1), context_BND)


class WeighsByAge(SoundEncoder):
    """Nothing is wrong: the longer ago an event was, the less it counts."""

    def __init__(self, config, inputs):
        if not inputs.times:
            raise ValueError("it needs times")
        super().__init__(config, inputs)
        self.reads_times = True

    def forward(self, sequence, context_BND):
        weight_E1 = (-1e-7 * sequence.ages_E.to(sequence.values_ED.dtype)).exp().unsqueeze(1)
        return super().forward(sequence.with_values(sequence.values_ED * weight_E1), context_BND)


class ReadsTimesInSilence(WeighsByAge):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.reads_times = False


class CannotDoWithoutTimes(WeighsByAge):
    """It does not say so when it is built."""

    def __init__(self, config, inputs):
        super().__init__(config, replace(inputs, times=True))


class ReadsNoTimes(SoundEncoder):
    reads_times = True


BROKEN = {
    WeighsByAge: {},
    ReadsTimesInSilence: {"times_are_read_as_declared": "'NoneType' object has no attribute 'to'"},
    CannotDoWithoutTimes: {"without_times": "'NoneType' object has no attribute 'to'"},
    ReadsNoTimes: {"times_are_read_as_declared": "reads_times is set, and ages change nothing"},
    KeepsTheOldest: {"the_newest_event_counts": "of 50 events of 'clicks' the newest is not read, and older ones are"},
    WeighsTheOldest: {"the_newest_event_counts": "the oldest has 50 times the newest's gradient"},
    WeighsTheNewest: {},
    ComparesEvents: {"work_follows_the_batch": "the result of aten.eq.Tensor has 19600 numbers instead of 4900"},
    DividesByTheLongest: {"neighbours_do_not_matter": "alone against the whole batch"},
    PadsToTheLongest: {"cost_follows_the_events": "as much in a batch with a long one"},
    PadsToTheMost: {"cost_follows_the_events": "where ten times longer ones may be"},
    NeedsExamples: {"batch_without_examples": "max()"},
    NeedsATarget: {"without_a_candidate_item": "index out of range"},
    RefusesWithoutATarget: {},
    IgnoresTheEvents: {"gradients_reach_every_parameter": "no gradient reaches clicks"},
    TwoTokens: {"output_is_as_declared": "output is (6, 1, 8), but (6, 2, 8) is declared"},
    WritesIntoEvents: {"inputs_are_left_alone": "the events of 'clicks' were changed in place"},
    SteepAtZero: {
        "nobody_has_a_history": "the gradient is not finite: ",
        "gradients_reach_every_parameter": "the gradient is not finite: ",
    },
}


def test_nothing_is_wrong_with_the_sound_one() -> None:
    assert not failures(SoundEncoder, supports_export=True)


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component) -> None:
    messages = failures(component)
    assert messages.keys() == BROKEN[component].keys()
    for test, words in BROKEN[component].items():
        assert words in messages[test]


def test_users_without_history_are_named() -> None:
    messages = failures(DividesByZero)
    assert "examples [0, 3] of the batch are not finite" in messages["output_is_finite"]
    assert "not finite in a batch without any event" in messages["nobody_has_a_history"]


def test_the_longest_history_is_among_the_examples() -> None:
    assert "index out of range" in failures(PositionsWithoutTheLast)["output_is_finite"]
