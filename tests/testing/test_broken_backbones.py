"""Backbones with a fault each, and the test of the kit that reports it."""

from __future__ import annotations

import random
import threading
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from tests.testing.sound import SoundBackbone, failures, total


class OverTheBatch(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x - x.sum(0) / max(len(x), 1)


class ByPlace(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x + torch.arange(len(x), device=x.device).unsqueeze(1)


class Dropout(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        return nn.functional.dropout(super().forward(tokens_BND, sequences), training=self.training)


class BatchNorm(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.norm = nn.BatchNorm1d(self.output_dim)

    def forward(self, tokens_BND, sequences):
        return self.norm(super().forward(tokens_BND, sequences))


class WrongWidth(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.output_dim += 1


class AlwaysDouble(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences).double()


class UnusedParameter(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.spare = nn.Parameter(torch.ones(3))


class IgnoresAToken(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        return super().forward(torch.cat([tokens_BND[:, :2], tokens_BND[:, 2:] * 0], dim=1), sequences)


class OwnRandomness(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.scale = nn.Parameter(torch.ones(1) * random.random())

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) * self.scale


class HiddenState(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.register_buffer("scale", torch.rand(1), persistent=False)

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) * self.scale


class WritesIntoTokens(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        tokens_BND.detach().clamp_(-1, 1)
        return super().forward(tokens_BND, sequences)


class Overflows(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences).mul(1e9).exp()


class LosesDigits(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = tokens_BND.flatten(1)
        for layer in self.layers:
            x = (layer(x) + 100) - 100
        return x


class NeedsValues(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.first = next(self.layers.parameters())[0, 0].item()


class StaysOnTheCPU(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.scale = nn.Parameter(torch.ones(1, device="cpu"))

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) * self.scale


class KernelOfItsOwn(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.weight = nn.Parameter(next(self.layers.parameters()).detach())
        self.layers = nn.ModuleList()

    def forward(self, tokens_BND, sequences):
        return (tokens_BND.flatten(1).unsqueeze(1) * self.weight).sum(2)


class BlockInABlock(SoundBackbone):
    def blocks(self):
        return [self.layers[1], self.layers[0], self.layers[1]]


class ForeignBlock(SoundBackbone):
    def blocks(self):
        return [*self.layers, nn.Linear(1, 1)]


class BlockNotCalled(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = tokens_BND.flatten(1)
        layer: Any
        for layer in self.layers:
            x = x + nn.functional.linear(x, layer.weight, layer.bias).tanh()
        return x


class Stateful(nn.Linear):
    """Its second forward pass in a thread is not its first."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.own = threading.local()

    def forward(self, x):
        self.own.calls += 1
        return (super().forward(x) * (1 + self.own.calls % 2)).tanh()


class BlockWithMemory(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = tokens_BND.flatten(1)
        layer: Any
        for layer in self.layers:
            layer.own.calls = 0
            x = x + layer(x)
        return x

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.layers = nn.ModuleList(Stateful(self.output_dim, self.output_dim) for _ in range(2))


class NeedsSequences(SoundBackbone):
    consumes_sequences = True
    read: tuple[str, ...] = ("clicks", "buys")

    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x + torch.stack([total(sequences[name]) for name in self.read]).sum(0).repeat(1, tokens_BND.shape[1])


class ReadsOneSequence(NeedsSequences):
    read = ("clicks",)

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) if sequences else SoundBackbone.forward(self, tokens_BND, {})


class RemembersItsInput(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        self.tokens_BND = tokens_BND
        x = super().forward(tokens_BND, sequences)
        return x + self.tokens_BND.sum(2).repeat(1, self.inputs.dim)


class Branches(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x + 0 if x.sum() > 0 else x


class TokensFromASet(SoundBackbone):
    """Its layers are made in a set's order, which differs from process to process."""

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.scales = nn.ParameterDict()
        for name in set(inputs.tokens):
            self.scales[name] = nn.Parameter(torch.ones(inputs.dim))

    def forward(self, tokens_BND, sequences):
        scaled = [tokens_BND[:, index] * self.scales[name] for index, name in enumerate(self.inputs.tokens)]
        return super().forward(torch.stack(scaled, dim=1), sequences)


class OutputFromASet(SoundBackbone):
    """All its parameters are in order, and its columns are not."""

    def forward(self, tokens_BND, sequences):
        places = [self.inputs.tokens.index(name) for name in {str(name) for name in self.inputs.tokens}]
        return super().forward(tokens_BND, sequences) + tokens_BND[:, places].flatten(1)


class SeedsItself(SoundBackbone):
    def __init__(self, config, inputs):
        torch.manual_seed(7)
        super().__init__(config, inputs)


class SeedsBetween(SoundBackbone):
    """The generator is as it was afterwards, and its own weights do not depend on the seed."""

    def __init__(self, config, inputs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            super().__init__(config, inputs)


class LeavesASeed(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        torch.default_generator.manual_seed(7)


class DrawsInACall(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        torch.rand(1)
        return super().forward(tokens_BND, sequences)


class SetsThreads(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        torch.set_num_threads(1)
        return super().forward(tokens_BND, sequences)


class SetsThreadsWhenBuilt(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        torch.set_num_threads(torch.get_num_threads())


class MadeOnTheDefaultDevice(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x + torch.zeros(x.shape, dtype=x.dtype)


class MadeOnTheCPU(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        return x * torch.ones(1, dtype=x.dtype, device="cpu")


class GoesToTheCPU(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences).to("cpu")


class PlainTensor(SoundBackbone):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.scale = torch.ones((), dtype=torch.float64)

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) * self.scale.to(tokens_BND)


class MovesWhatItMakes(SoundBackbone):
    """Sound: tensors made on the CPU are moved to the input's device, and a number needs no device."""

    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        moved = torch.ones(1).to(x.device) * torch.arange(1, 2, device=x.device)
        return x * moved.to(x) + torch.zeros_like(x) + torch.tensor(0.0) + x.new_ones(1)


class KeepsItsOutput(SoundBackbone):
    def forward(self, tokens_BND, sequences):
        self.last = super().forward(tokens_BND, sequences)
        return self.last


class KeepsItsOutputElsewhere(SoundBackbone):
    kept: ClassVar[list[torch.Tensor]] = []

    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        self.kept[:] = [x.detach().abs().mean(0)]
        return x


class KeepsAMask(SoundBackbone):
    """Sound: a tensor that depends on the batch's shape alone is cached."""

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.masks = {}

    def forward(self, tokens_BND, sequences):
        if tokens_BND.shape[1] not in self.masks:
            self.masks[tokens_BND.shape[1]] = [1.0] * tokens_BND.shape[1]
        return super().forward(tokens_BND, sequences)


class ComparesExamples(SoundBackbone):
    """Each example meets all others, though nothing comes of it."""

    def forward(self, tokens_BND, sequences):
        x = super().forward(tokens_BND, sequences)
        likeness_BB = (x @ x.T).fill_diagonal_(0)
        return x + 0 * likeness_BB.sum(1, keepdim=True)


class PerTask(SoundBackbone):
    """Nothing is wrong: tasks scale a representation that they share."""

    per_task = True

    def __init__(self, config, inputs):
        if not inputs.tasks:
            raise ValueError("it needs the model's tasks")
        super().__init__(config, inputs)
        self.scale_TR = nn.Parameter(torch.randn(len(inputs.tasks), self.output_dim))

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences).unsqueeze(1) * self.scale_TR


class PerTaskWithoutTasks(PerTask):
    """It makes some where there are none."""

    def __init__(self, config, inputs):
        super().__init__(config, replace(inputs, tasks=inputs.tasks or ("task",)))


class OneForAllTasks(PerTask):
    def forward(self, tokens_BND, sequences):
        shared_BR = super().forward(tokens_BND, sequences).mean(1)
        return shared_BR.unsqueeze(1).repeat(1, len(self.inputs.tasks), 1)


class PerTaskInSilence(PerTask):
    per_task = False


class CountsTasks(SoundBackbone):
    """It is another network inside a component."""

    def forward(self, tokens_BND, sequences):
        return super().forward(tokens_BND, sequences) * (1 + len(self.inputs.tasks))


BROKEN = {
    PerTask: {},
    PerTaskWithoutTasks: {"tasks_are_read_as_declared": "DID NOT RAISE"},
    OneForAllTasks: {"tasks_are_read_as_declared": "two tasks have one representation; leave per_task unset"},
    PerTaskInSilence: {
        "output_is_as_declared": "output is (6, 3, 32), but (6, 32) is declared",
        "tasks_are_read_as_declared": "it needs the model's tasks",
    },
    CountsTasks: {"tasks_are_read_as_declared": "without tasks, against with them: the outputs differ"},
    TokensFromASet: {"names_do_not_decide": "where its features have other names; go through names in the order of"},
    OutputFromASet: {"names_do_not_decide": "where its features have other names; go through names in the order of"},
    SeedsItself: {"the_seed_is_the_runs": "its constructor calls torch.manual_seed"},
    SeedsBetween: {"the_seed_is_the_runs": "its constructor calls torch.manual_seed"},
    LeavesASeed: {"the_seed_is_the_runs": "torch's random numbers no longer depend on the seed"},
    DrawsInACall: {"the_seed_is_the_runs": "a call draws random numbers"},
    SetsThreads: {"settings_of_the_process_are_left_alone": "SetsThreads sets torch's number of threads to 1"},
    SetsThreadsWhenBuilt: {"settings_of_the_process_are_left_alone": "sets torch's number of threads to "},
    MadeOnTheDefaultDevice: {"runs_on_the_inputs_device": "add is given a tensor on the CPU and one on the input's"},
    MadeOnTheCPU: {"runs_on_the_inputs_device": "mul is given a tensor on the CPU and one on the input's device"},
    GoesToTheCPU: {"runs_on_the_inputs_device": "the output is on the CPU wherever the input is"},
    PlainTensor: {"runs_on_the_inputs_device": "scale stays where it was made; register_buffer(..., persistent=False)"},
    MovesWhatItMakes: {},
    KeepsItsOutput: {"a_call_leaves_nothing_behind": "of a call that is over, the result of aten"},
    KeepsItsOutputElsewhere: {"a_call_leaves_nothing_behind": "the result of aten.mean.dim is still in memory"},
    KeepsAMask: {},
    ComparesExamples: {"work_follows_the_batch": "the result of aten.mm.default has 144 numbers instead of 36"},
    OverTheBatch: {"neighbours_do_not_matter": "example 0 alone against the whole batch"},
    ByPlace: {"neighbours_do_not_matter": "example 1 alone", "order_of_examples_does_not_matter": "reverse order"},
    Dropout: {"training_is_evaluation": "training against evaluation mode: the outputs differ"},
    BatchNorm: {"training_is_evaluation": "training against evaluation mode: the outputs differ"},
    WrongWidth: {"output_is_as_declared": "output is (6, 32), but (6, 33) is declared"},
    AlwaysDouble: {"output_is_as_declared": "are torch.float32, the output is torch.float64"},
    UnusedParameter: {"gradients_reach_every_parameter": "no gradient reaches spare"},
    IgnoresAToken: {"gradient_reaches_the_tokens": "no gradient reaches the tokens item, shop"},
    OwnRandomness: {"one_seed_builds_one_network": "two components built under one seed"},
    HiddenState: {"saved_state_is_the_whole_state": "state loaded into a component of another seed"},
    WritesIntoTokens: {"inputs_are_left_alone": "the tokens were changed in place"},
    LosesDigits: {"low_precision_is_close": "5% allowed"},
    NeedsValues: {"builds_without_memory": "meta tensors"},
    StaysOnTheCPU: {"builds_without_memory": "built on the meta device, scale took memory"},
    KernelOfItsOwn: {"cost_is_counted": "it has matrices (weight), but no FLOPs"},
    BlockInABlock: {"blocks_are_modules_of_its_own": "layers.1 is in layers.1 and in layers.1"},
    ForeignBlock: {
        "blocks_are_modules_of_its_own": "Linear is not a submodule",
        "recomputing_blocks_changes_nothing": "nobody calls Linear",
    },
    BlockNotCalled: {"recomputing_blocks_changes_nothing": "nobody calls Linear, so none of it is recomputed"},
    BlockWithMemory: {"recomputing_blocks_changes_nothing": "with the blocks recomputed in backward"},
    NeedsSequences: {"without_sequences": "clicks"},
    RemembersItsInput: {"calls_may_overlap": "called by two threads at once"},
    ReadsOneSequence: {"gradients_reach_every_parameter": "no gradient reaches buys"},
}


def test_nothing_is_wrong_with_the_sound_one() -> None:
    assert not failures(SoundBackbone, supports_export=True)


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component) -> None:
    messages = failures(component)
    assert messages.keys() == BROKEN[component].keys()
    for test, words in BROKEN[component].items():
        assert words in messages[test]


def test_what_cannot_be_exported_is_found_where_it_is_claimed() -> None:
    assert failures(Branches, supports_export=True).keys() == {"exports"}


def test_one_that_cannot_be_built_is_said_once() -> None:
    class Blocks(SoundBackbone):
        def __init__(self, config, inputs):
            super().__init__(config, inputs)
            self.blocks = nn.ModuleList()  # type: ignore[method-assign]  # the test refuses it

    messages = failures(Blocks)
    assert len(messages) <= 4, messages.keys()
    assert all("'blocks': that is a method of exfm.Backbone" in words for words in messages.values())


def test_numbers_that_are_not_finite() -> None:
    messages = failures(Overflows)
    assert "examples [0, 1, 2, 3, 4, 5] of the batch are not finite" in messages["output_is_finite"]
