"""What a component is built with: its config, its inputs, nested components."""

from __future__ import annotations

from exfm.config.component_field import ComponentField, ComponentSpec
from exfm.errors import NotYetError, RowsRemovedError, suggestion
from exfm.interfaces.backbone import BackboneInputs, SequenceShape
from exfm.interfaces.component import Component
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.sequence_encoder import EncoderInputs

__all__ = [
    "BackboneInputs",
    "Component",
    "ComponentField",
    "ComponentSpec",
    "EncoderInputs",
    "JaggedSequence",
    "NotYetError",
    "RowsRemovedError",
    "SequenceShape",
    "suggestion",
]
