"""Transfers teacher output, vectors and parameters to a student while it trains, each causally."""

from __future__ import annotations

from exfm.interfaces.distillation_strategy import LabelAdapter, StudentOutput, TeacherOutput
from exfm.interfaces.input_spec import EXAMPLE, InputSpec
from exfm.interfaces.parameter_strategy import AddRows, CopyPart, TeacherVectors
from exfm.interfaces.teacher_input import TeacherInputConfig, VectorHistory
from exfm.interfaces.transfer_specs import PartSpec, StudentSpec, TeacherSpec
from exfm.interfaces.transfer_strategy import TransferConfig

__all__ = [
    "EXAMPLE",
    "AddRows",
    "CopyPart",
    "InputSpec",
    "LabelAdapter",
    "PartSpec",
    "StudentOutput",
    "StudentSpec",
    "TeacherInputConfig",
    "TeacherOutput",
    "TeacherSpec",
    "TeacherVectors",
    "TransferConfig",
    "VectorHistory",
]
