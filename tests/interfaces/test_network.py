"""Names that attributes of a network may take."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import exfm


class Free(exfm.Backbone):
    name = "free"

    def forward(self, tokens_BND, sequences):
        return tokens_BND.flatten(1)


def backbone(attribute: str, value: Any, base: type[Any] = Free) -> Any:
    class Named(base):
        def __init__(self, config, inputs):
            super().__init__(config, inputs)
            setattr(self, attribute, value)

    return Named(exfm.ComponentConfig(), exfm.components.BackboneInputs(("user", "item"), 4))


TAKEN: dict[str, tuple[str, Any, str]] = {
    "blocks": ("blocks", nn.ModuleList(), "'blocks': that is a method of exfm.Backbone, .* such as self.layers"),
    "a list": ("blocks", [nn.Linear(1, 1)], "'blocks': that is a method of exfm.Backbone"),
    "forward": ("forward", nn.Linear(1, 1), "'forward': that is a method of exfm.Backbone"),
    "a method of torch": ("train", nn.Linear(1, 1), "'train': that is a method of torch.nn.Module"),
    "float": ("float", 3, "'float': that is a method of torch.nn.Module"),
    "name": ("name", nn.Embedding(1, 1), "'name': that is a class attribute of .*Named"),
    "config": ("config", nn.Linear(1, 1), "'config': that is what exfm.Backbone declares"),
    "inputs": ("inputs", nn.Linear(1, 1), "'inputs': that is what exfm.Backbone declares"),
    "output_dim": ("output_dim", nn.Parameter(torch.ones(1)), "'output_dim': that is what exfm.Backbone declares"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_a_name_that_is_taken_is_refused_where_it_is_assigned(case: str) -> None:
    attribute, value, words = TAKEN[case]
    with pytest.raises(TypeError, match=words):
        backbone(attribute, value)


def test_encoders_and_strategies_too() -> None:
    class Encoder(exfm.SequenceEncoder):
        name = "encoder"

        def __init__(self, config, inputs):
            super().__init__(config, inputs)
            self.num_tokens = nn.Parameter(torch.ones(2, 4))  # type: ignore[assignment]  # the test refuses it

        def forward(self, sequence, context_BND):
            return self.num_tokens

    class Strategy(exfm.DistillationStrategy):
        name = "strategy"

        def __init__(self, config, student, teacher):
            super().__init__(config, student, teacher)
            self.tasks = nn.ModuleDict({"click": student.new_head()})  # type: ignore[assignment]  # the same

        def loss(self, student, teacher, labels):
            return student.representation_BR.sum()

    with pytest.raises(TypeError, match=r"'num_tokens': that is what exfm\.SequenceEncoder declares"):
        Encoder(exfm.ComponentConfig(), exfm.components.EncoderInputs("clicks", 4, 5, ("user",), ()))
    with pytest.raises(TypeError, match=r"'tasks': that is what exfm\.TransferStrategy declares"):
        student = exfm.transfer.StudentSpec(("click",), 4, lambda: nn.Linear(4, 1))
        Strategy(exfm.transfer.TransferConfig(teacher="fm"), student, exfm.transfer.TeacherSpec("fm", ("click",)))


def test_a_class_cannot_have_something_else_under_a_methods_name() -> None:
    with pytest.raises(TypeError, match=r"Listed\.blocks must be a method, as in exfm\.Backbone"):

        class Listed(Free):
            @property
            def blocks(self):
                return []


def test_other_names_are_free() -> None:
    module = backbone("layers", nn.ModuleList([nn.Linear(1, 1)]))
    module.output_dim = 3
    module.weight = nn.Parameter(torch.ones(2))
    module.register_buffer("seen", torch.zeros(()))
    module.seen = torch.ones(())
    module.cached = torch.ones(2)
    module.forward = lambda tokens_BND, sequences: tokens_BND
    again = copy.deepcopy(module)
    assert len(again.blocks()) == 1 and again.seen == 1 and again.output_dim == 3
