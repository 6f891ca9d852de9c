"""exfm: external distillation for recommendation, from a foundation model to the models that are served.

Exports every name that a plugin or a script needs. A name is imported when it is first used, because then
``import exfm`` costs nothing and no command waits for torch that does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from exfm.config.component_field import ComponentField as ComponentField
    from exfm.config.component_field import ComponentSpec as ComponentSpec
    from exfm.config.loading import Experiment as Experiment
    from exfm.config.loading import load_experiment as load_experiment
    from exfm.errors import ConfigError as ConfigError
    from exfm.errors import NotYetError as NotYetError
    from exfm.errors import RunError as RunError
    from exfm.errors import suggestion as suggestion
    from exfm.interfaces.backbone import Backbone as Backbone
    from exfm.interfaces.backbone import BackboneInputs as BackboneInputs
    from exfm.interfaces.backbone import SequenceShape as SequenceShape
    from exfm.interfaces.component import Component as Component
    from exfm.interfaces.component import ComponentConfig as ComponentConfig
    from exfm.interfaces.data_source import DataSource as DataSource
    from exfm.interfaces.data_source import Origin as Origin
    from exfm.interfaces.data_source import Shard as Shard
    from exfm.interfaces.data_source import StreamPart as StreamPart
    from exfm.interfaces.data_source import TimeRange as TimeRange
    from exfm.interfaces.data_source import Window as Window
    from exfm.interfaces.data_source import mark_bad_rows as mark_bad_rows
    from exfm.interfaces.data_source import slice_rows as slice_rows
    from exfm.interfaces.distillation_strategy import DistillationStrategy as DistillationStrategy
    from exfm.interfaces.distillation_strategy import LabelAdapter as LabelAdapter
    from exfm.interfaces.distillation_strategy import StudentOutput as StudentOutput
    from exfm.interfaces.distillation_strategy import TeacherOutput as TeacherOutput
    from exfm.interfaces.duration import Duration as Duration
    from exfm.interfaces.duration import microseconds as microseconds
    from exfm.interfaces.jagged import JaggedSequence as JaggedSequence
    from exfm.interfaces.layout import Cluster as Cluster
    from exfm.interfaces.layout import Collective as Collective
    from exfm.interfaces.layout import Layout as Layout
    from exfm.interfaces.layout import LayoutEstimator as LayoutEstimator
    from exfm.interfaces.layout import TableShard as TableShard
    from exfm.interfaces.layout import TableSharding as TableSharding
    from exfm.interfaces.layout import TableUse as TableUse
    from exfm.interfaces.layout import Workload as Workload
    from exfm.interfaces.parallel_model import ParallelModel as ParallelModel
    from exfm.interfaces.parallel_plan import ParallelPlan as ParallelPlan
    from exfm.interfaces.parallel_plan import TableOptimizer as TableOptimizer
    from exfm.interfaces.parameter_strategy import AddRows as AddRows
    from exfm.interfaces.parameter_strategy import CopyPart as CopyPart
    from exfm.interfaces.parameter_strategy import ParameterStrategy as ParameterStrategy
    from exfm.interfaces.parameter_strategy import TeacherVectors as TeacherVectors
    from exfm.interfaces.process_group import ProcessGroup as ProcessGroup
    from exfm.interfaces.schema import CategoricalFeature as CategoricalFeature
    from exfm.interfaces.schema import DenseFeature as DenseFeature
    from exfm.interfaces.schema import EventTimes as EventTimes
    from exfm.interfaces.schema import Feature as Feature
    from exfm.interfaces.schema import FeatureSchema as FeatureSchema
    from exfm.interfaces.schema import Label as Label
    from exfm.interfaces.schema import MultiValuedFeature as MultiValuedFeature
    from exfm.interfaces.schema import SequenceFeature as SequenceFeature
    from exfm.interfaces.schema import SequenceField as SequenceField
    from exfm.interfaces.sequence_encoder import EncoderInputs as EncoderInputs
    from exfm.interfaces.sequence_encoder import SequenceEncoder as SequenceEncoder
    from exfm.interfaces.teacher_input import InputSpec as InputSpec
    from exfm.interfaces.teacher_input import TeacherInput as TeacherInput
    from exfm.interfaces.teacher_input import TeacherInputConfig as TeacherInputConfig
    from exfm.interfaces.teacher_input import VectorHistory as VectorHistory
    from exfm.interfaces.transfer_specs import PartSpec as PartSpec
    from exfm.interfaces.transfer_specs import StudentSpec as StudentSpec
    from exfm.interfaces.transfer_specs import TeacherSpec as TeacherSpec
    from exfm.interfaces.transfer_strategy import TransferConfig as TransferConfig
    from exfm.interfaces.transfer_strategy import TransferStrategy as TransferStrategy
    from exfm.interfaces.trunk import TrunkRunner as TrunkRunner
    from exfm.registry.hooks import LazyComponent as LazyComponent
    from exfm.registry.hooks import hookimpl as hookimpl
    from exfm.training.run import run as run

_HOME = {
    "AddRows": "exfm.interfaces.parameter_strategy",
    "Backbone": "exfm.interfaces.backbone",
    "BackboneInputs": "exfm.interfaces.backbone",
    "CategoricalFeature": "exfm.interfaces.schema",
    "Cluster": "exfm.interfaces.layout",
    "Collective": "exfm.interfaces.layout",
    "Component": "exfm.interfaces.component",
    "ComponentConfig": "exfm.interfaces.component",
    "ComponentField": "exfm.config.component_field",
    "ComponentSpec": "exfm.config.component_field",
    "ConfigError": "exfm.errors",
    "CopyPart": "exfm.interfaces.parameter_strategy",
    "DataSource": "exfm.interfaces.data_source",
    "DenseFeature": "exfm.interfaces.schema",
    "DistillationStrategy": "exfm.interfaces.distillation_strategy",
    "Duration": "exfm.interfaces.duration",
    "EncoderInputs": "exfm.interfaces.sequence_encoder",
    "EventTimes": "exfm.interfaces.schema",
    "Experiment": "exfm.config.loading",
    "Feature": "exfm.interfaces.schema",
    "FeatureSchema": "exfm.interfaces.schema",
    "InputSpec": "exfm.interfaces.teacher_input",
    "JaggedSequence": "exfm.interfaces.jagged",
    "Label": "exfm.interfaces.schema",
    "LabelAdapter": "exfm.interfaces.distillation_strategy",
    "Layout": "exfm.interfaces.layout",
    "LayoutEstimator": "exfm.interfaces.layout",
    "LazyComponent": "exfm.registry.hooks",
    "MultiValuedFeature": "exfm.interfaces.schema",
    "NotYetError": "exfm.errors",
    "Origin": "exfm.interfaces.data_source",
    "ParallelModel": "exfm.interfaces.parallel_model",
    "ParallelPlan": "exfm.interfaces.parallel_plan",
    "ParameterStrategy": "exfm.interfaces.parameter_strategy",
    "PartSpec": "exfm.interfaces.transfer_specs",
    "ProcessGroup": "exfm.interfaces.process_group",
    "RunError": "exfm.errors",
    "SequenceEncoder": "exfm.interfaces.sequence_encoder",
    "SequenceFeature": "exfm.interfaces.schema",
    "SequenceField": "exfm.interfaces.schema",
    "SequenceShape": "exfm.interfaces.backbone",
    "Shard": "exfm.interfaces.data_source",
    "StreamPart": "exfm.interfaces.data_source",
    "StudentOutput": "exfm.interfaces.distillation_strategy",
    "StudentSpec": "exfm.interfaces.transfer_specs",
    "TableOptimizer": "exfm.interfaces.parallel_plan",
    "TableShard": "exfm.interfaces.layout",
    "TableSharding": "exfm.interfaces.layout",
    "TableUse": "exfm.interfaces.layout",
    "TeacherInput": "exfm.interfaces.teacher_input",
    "TeacherInputConfig": "exfm.interfaces.teacher_input",
    "TeacherOutput": "exfm.interfaces.distillation_strategy",
    "TeacherSpec": "exfm.interfaces.transfer_specs",
    "TeacherVectors": "exfm.interfaces.parameter_strategy",
    "TimeRange": "exfm.interfaces.data_source",
    "TransferConfig": "exfm.interfaces.transfer_strategy",
    "TransferStrategy": "exfm.interfaces.transfer_strategy",
    "TrunkRunner": "exfm.interfaces.trunk",
    "VectorHistory": "exfm.interfaces.teacher_input",
    "Window": "exfm.interfaces.data_source",
    "Workload": "exfm.interfaces.layout",
    "hookimpl": "exfm.registry.hooks",
    "load_experiment": "exfm.config.loading",
    "mark_bad_rows": "exfm.interfaces.data_source",
    "microseconds": "exfm.interfaces.duration",
    "run": "exfm.training.run",
    "slice_rows": "exfm.interfaces.data_source",
    "suggestion": "exfm.errors",
}
"""Where each public name lives; a test compares it with the imports above."""

__all__ = sorted(_HOME)


# A module without an attribute calls its __getattr__ (PEP 562): so a public name is imported at its first use.
def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'exfm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
