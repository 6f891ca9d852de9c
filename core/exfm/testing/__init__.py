"""The compliance kit: tests of a component's contract, for the authors of plugins.

There is a class for each kind. Extend it in a test file and name the component; pytest collects its tests::

    from exfm.testing import BackboneTests

    class TestMine(BackboneTests):
        component = Mine
        plugin = exfm_plugin_mine
        configs = ({}, {"layers": 3})  # as written in YAML; every test runs for each

``ComponentTests`` has the tests of components of every kind.

The kit needs pytest: ``pip install 'exfm[test]'``. With exfm installed, pytest also has the fixture ``exfm_registry``
(see ``exfm.testing.plugin``). The names of this module are imported on first use, because pytest imports the fixture in
every project.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exfm.testing.backbone import BackboneTests as BackboneTests
    from exfm.testing.component import ComponentTests as ComponentTests
    from exfm.testing.data_source import DataSourceTests as DataSourceTests
    from exfm.testing.distillation_strategy import DistillationStrategyTests as DistillationStrategyTests
    from exfm.testing.examples import Examples as Examples
    from exfm.testing.examples import random_examples as random_examples
    from exfm.testing.isolation import IsolatedRegistry as IsolatedRegistry
    from exfm.testing.parallel_plan import ParallelPlanTests as ParallelPlanTests
    from exfm.testing.parameter_strategy import ParameterStrategyTests as ParameterStrategyTests
    from exfm.testing.sequence_encoder import SequenceEncoderTests as SequenceEncoderTests
    from exfm.testing.teacher_input import TeacherInputTests as TeacherInputTests

_MODULES = {
    "BackboneTests": "exfm.testing.backbone",
    "ComponentTests": "exfm.testing.component",
    "DataSourceTests": "exfm.testing.data_source",
    "DistillationStrategyTests": "exfm.testing.distillation_strategy",
    "Examples": "exfm.testing.examples",
    "IsolatedRegistry": "exfm.testing.isolation",
    "ParallelPlanTests": "exfm.testing.parallel_plan",
    "ParameterStrategyTests": "exfm.testing.parameter_strategy",
    "SequenceEncoderTests": "exfm.testing.sequence_encoder",
    "TeacherInputTests": "exfm.testing.teacher_input",
    "random_examples": "exfm.testing.examples",
}

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'exfm.testing' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
