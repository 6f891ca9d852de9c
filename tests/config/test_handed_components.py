"""Classes that a script or a notebook hands to `load_experiment` are components like installed ones, there alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
from pydantic import Field
from torch import Tensor, nn

import exfm
from exfm.registry.discovery import discover


class Handed(exfm.Backbone):
    """The sum of the tokens."""

    name: ClassVar[str] = "handed"

    class Config(exfm.ComponentConfig):
        """Fields."""

        width: int = Field(8, gt=0, description="Width of the representation.")

    def __init__(self, config: Config, inputs: exfm.components.BackboneInputs) -> None:
        super().__init__(config, inputs)
        self.out = nn.Linear(inputs.dim, config.width)
        self.output_dim = config.width

    def forward(self, tokens_BND: Tensor, sequences: Any) -> Tensor:
        return self.out(tokens_BND.sum(dim=1))


class Second(Handed):
    name: ClassVar[str] = "dlrm"


def test_a_handed_class_has_its_name_and_is_checked(experiment: dict[str, Any], write: Callable[..., str]) -> None:
    experiment["models"]["vm"]["backbone"] = {"name": "handed", "width": 4}
    path = write(experiment)
    loaded = exfm.load_experiment(path, components=[Handed])
    assert loaded.config.models["vm"].backbone.component is Handed
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.backbone\.widht.*Did you mean 'width'"):
        exfm.load_experiment(path, ["models.vm.backbone.widht=3"], components=[Handed])
    with pytest.raises(exfm.ConfigError, match="no backbone is called 'handed'"):
        exfm.load_experiment(path)


def test_it_joins_the_registry_of_the_caller_and_leaves_it_unchanged(
    experiment: dict[str, Any], write: Callable[..., str]
) -> None:
    registry = discover()
    experiment["models"]["vm"]["backbone"] = {"name": "handed"}
    assert exfm.load_experiment(write(experiment), registry=registry, components=[Handed])
    assert "handed" not in registry.names("backbone")


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [(nn.Linear, "none of exfm's base classes"), (exfm.Backbone, "lower-case identifier")],
)
def test_a_class_that_is_no_component_is_refused(
    wrong: type[Any], reason: str, experiment: dict[str, Any], write: Callable[..., str]
) -> None:
    with pytest.raises(exfm.ConfigError, match=reason):
        exfm.load_experiment(write(experiment), components=[wrong])


def test_the_name_of_an_installed_component_is_taken(experiment: dict[str, Any], write: Callable[..., str]) -> None:
    experiment["models"]["vm"]["backbone"] = {"name": "dlrm"}
    with pytest.raises(exfm.ConfigError, match=r"'dlrm' is offered by .*exfm .* and by .*this process"):
        exfm.load_experiment(write(experiment), components=[Second])
