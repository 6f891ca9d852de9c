"""Teacher inputs with one thing wrong each, and the test of the kit that says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from exfm import TeacherInput
from exfm.testing import TeacherInputTests
from exfm.transfer import EXAMPLE, TeacherInputConfig
from tests.testing.sound import failed


class Sound(TeacherInput):
    """Nothing is wrong: the mean of the states there are, through a map of each entity."""

    name = "sound"

    class Config(TeacherInputConfig):
        """Three states."""

        @property
        def length(self) -> int:
            return 3

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.maps = nn.ModuleList(nn.Linear(width, inputs.dim) for width in inputs.widths.values())

    def forward(self, histories):
        pooled = [self.pool(histories[entity]) for entity in self.inputs.widths]
        return torch.stack([layer(state_BK) for layer, state_BK in zip(self.maps, pooled, strict=True)], dim=1)

    def pool(self, history):
        state_BLK = torch.where(history.valid_BL.unsqueeze(2), history.vector_BLK, 0.0)
        return state_BLK.sum(1) / history.valid_BL.sum(1, keepdim=True).clamp(min=1)


class DividesByNone(Sound):
    def pool(self, history):
        state_BLK = torch.where(history.valid_BL.unsqueeze(2), history.vector_BLK, 0.0)
        return state_BLK.sum(1) / history.valid_BL.sum(1, keepdim=True)


class ReadsWhatIsNotThere(Sound):
    def pool(self, history):
        return history.vector_BLK.mean(1)


class ReadsTheOldestAlone(Sound):
    def pool(self, history):
        return torch.where(history.valid_BL[:, 2:], history.vector_BLK[:, 2], 0.0)


class CentresTheBatch(Sound):
    def pool(self, history):
        state_BK = super().pool(history)
        return state_BK - state_BK.mean(0, keepdim=True) if len(state_BK) else state_BK


class SaysOneTokenMore(Sound):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.num_tokens = len(inputs.widths) + 1


class SpareParameter(Sound):
    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.spare = nn.Parameter(torch.ones(2))


class MapsOfASortedSet(Sound):
    """Its maps belong to entities in the order of their names."""

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        widths = [inputs.widths[entity] for entity in sorted(inputs.widths)]
        self.maps = nn.ModuleList(nn.Linear(width, inputs.dim) for width in widths)

    def forward(self, histories):
        pooled = {entity: self.pool(histories[entity]) for entity in sorted(self.inputs.widths)}
        made = {entity: layer(pooled[entity]) for entity, layer in zip(pooled, self.maps, strict=True)}
        return torch.stack([made[entity] for entity in self.inputs.widths], dim=1)


class OtherInTraining(Sound):
    def pool(self, history):
        return super().pool(history) * (2 if self.training else 1)


class KeepsStates(Sound):
    def pool(self, history):
        self.last = super().pool(history)
        return self.last


BROKEN: dict[type[Any], dict[str, str]] = {
    DividesByNone: {"tokens_have_the_declared_shape_and_are_finite": "of 8 examples, its tokens are not finite"},
    ReadsWhatIsNotThere: {"a_vector_that_there_is_not_changes_nothing": "its tokens, with other unknown vectors"},
    ReadsTheOldestAlone: {"the_newest_vector_counts": "do not depend on the newest vectors"},
    CentresTheBatch: {"an_example_depends_on_itself_alone": "of each example alone and of all together"},
    SaysOneTokenMore: {"tokens_have_the_declared_shape_and_are_finite": "it gives (8, 2, 8), not (8, 3, 8)"},
    SpareParameter: {"every_part_learns": "no gradient reaches spare"},
    MapsOfASortedSet: {"names_do_not_decide": "its tokens, with entities of other names"},
    OtherInTraining: {"runs_repeat": "in training and in evaluation mode"},
    KeepsStates: {"the_process_is_left_alone": "is still in memory; what lasts is a buffer"},
}


def test_nothing_is_wrong_with_a_sound_one() -> None:
    assert not failed(TeacherInputTests, {"component": Sound})


@pytest.mark.parametrize("component", BROKEN, ids=lambda component: component.__name__)
def test_what_is_wrong_is_said_by_its_own_test(component: type[Any]) -> None:
    found = failed(TeacherInputTests, {"component": component})
    for test, words in BROKEN[component].items():
        assert words in found[test]
    assert found.keys() - BROKEN[component].keys() <= {"every_part_learns", "exports", "the_newest_vector_counts"}


class SoundPair(TeacherInput):
    """Nothing is wrong: the embedding of the example through a map, and a learned token where there is none."""

    name = "sound_pair"
    reads = "embedding"

    def __init__(self, config, inputs):
        super().__init__(config, inputs)
        self.map = nn.Linear(inputs.widths[EXAMPLE], inputs.dim)
        self.missing = nn.Parameter(torch.ones(inputs.dim))

    def forward(self, histories):
        embedding_BK, valid_B1 = histories[EXAMPLE].vector_BLK[:, 0], histories[EXAMPLE].valid_BL
        return self.token(embedding_BK, valid_B1).unsqueeze(1)

    def token(self, embedding_BK, valid_B1):
        return torch.where(valid_B1, self.map(embedding_BK), self.missing)


class ReadsAMiss(SoundPair):
    def token(self, embedding_BK, valid_B1):
        return self.map(embedding_BK) + valid_B1 * self.missing


class FillsAMissFromTheBatch(SoundPair):
    def token(self, embedding_BK, valid_B1):
        present_BK = torch.where(valid_B1, embedding_BK, 0.0)
        mean_K = present_BK.sum(0) / valid_B1.sum().clamp(min=1)
        return self.map(torch.where(valid_B1, embedding_BK, mean_K)) + self.missing


class TellsHitsFromMissesAlone(SoundPair):
    def token(self, embedding_BK, valid_B1):
        return torch.where(valid_B1, self.map(torch.ones_like(embedding_BK)), self.missing)


class NeverTrainsTheMiss(SoundPair):
    def token(self, embedding_BK, valid_B1):
        return torch.where(valid_B1, self.map(embedding_BK), self.missing.detach())


class AsksForThree(SoundPair):
    class Config(TeacherInputConfig):
        """Three embeddings of an example."""

        @property
        def length(self) -> int:
            return 3


BROKEN_PAIRS: dict[type[Any], tuple[str, str]] = {
    ReadsAMiss: ("a_vector_that_there_is_not_changes_nothing", "its tokens, with other unknown vectors"),
    FillsAMissFromTheBatch: ("an_example_depends_on_itself_alone", "of each example alone and of all together"),
    TellsHitsFromMissesAlone: ("the_newest_vector_counts", "do not depend on the newest vectors"),
    NeverTrainsTheMiss: ("every_part_learns", "no gradient reaches missing"),
    AsksForThree: ("an_embedding_is_a_single_vector", "its Config asks for 3 vectors of the example"),
}


def test_nothing_is_wrong_with_a_sound_one_that_reads_the_example() -> None:
    assert not failed(TeacherInputTests, {"component": SoundPair})


@pytest.mark.parametrize("component", BROKEN_PAIRS, ids=lambda component: component.__name__)
def test_what_is_wrong_with_one_that_reads_the_example_is_said(component: type[Any]) -> None:
    test, words = BROKEN_PAIRS[component]
    faults = failed(TeacherInputTests, {"component": component})
    assert words in faults.pop(test)
    assert faults.keys() <= {"every_part_learns", "exports"}


def test_what_it_reads_is_one_of_two() -> None:
    with pytest.raises(TypeError, match=r"Odd\.reads must be 'states' or 'embedding', not 'rows'"):
        type("Odd", (SoundPair,), {"reads": "rows"})
