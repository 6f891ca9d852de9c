"""exfm: external distillation for recommendation, from a foundation model to the models that are served.

Everything a plugin or a script needs is exported here. Names are imported when they are first used, so that
``import exfm`` costs nothing and no command waits for torch that does not need it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "Backbone": "exfm.interfaces.backbone",
    "BackboneInputs": "exfm.interfaces.backbone",
    "CategoricalFeature": "exfm.interfaces.schema",
    "Component": "exfm.interfaces.component",
    "ComponentConfig": "exfm.interfaces.component",
    "ComponentField": "exfm.config.component_field",
    "ComponentSpec": "exfm.config.component_field",
    "ConfigError": "exfm.errors",
    "DataSource": "exfm.interfaces.data_source",
    "DenseFeature": "exfm.interfaces.schema",
    "EncoderInputs": "exfm.interfaces.sequence_encoder",
    "FeatureSchema": "exfm.interfaces.schema",
    "JaggedSequence": "exfm.interfaces.jagged",
    "Label": "exfm.interfaces.schema",
    "LazyComponent": "exfm.registry.hooks",
    "MultiValuedFeature": "exfm.interfaces.schema",
    "Origin": "exfm.interfaces.data_source",
    "ParallelPlan": "exfm.interfaces.parallel_plan",
    "SequenceEncoder": "exfm.interfaces.sequence_encoder",
    "SequenceFeature": "exfm.interfaces.schema",
    "SequenceField": "exfm.interfaces.schema",
    "SequenceShape": "exfm.interfaces.backbone",
    "Shard": "exfm.interfaces.data_source",
    "StudentOutput": "exfm.interfaces.transfer_strategy",
    "StudentShape": "exfm.interfaces.transfer_strategy",
    "Supervision": "exfm.interfaces.transfer_strategy",
    "TableOptimizer": "exfm.interfaces.parallel_plan",
    "TeacherShape": "exfm.interfaces.transfer_strategy",
    "TimeRange": "exfm.interfaces.data_source",
    "TransferConfig": "exfm.interfaces.transfer_strategy",
    "TransferStrategy": "exfm.interfaces.transfer_strategy",
    "Window": "exfm.interfaces.data_source",
    "hookimpl": "exfm.registry.hooks",
    "load_experiment": "exfm.config.loading",
    "run": "exfm.training.run",
    "slice_rows": "exfm.interfaces.data_source",
}

__all__ = sorted(_HOME)  # noqa: PLE0605

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'exfm' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *_HOME])
