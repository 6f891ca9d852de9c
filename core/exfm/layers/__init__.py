"""Provides layers that plugins share: MLPs, norms, attention over dense tokens and jagged sequences, distillation.

All names here are public, and none of them is a component. ``count_flops`` counts the FLOPs of these layers.
"""

from __future__ import annotations

from exfm.layers.attention import Attention, AttentionPooling, JaggedAttention
from exfm.layers.candidate_meeting import CandidateMeeting, sum_tokens
from exfm.layers.distillation import (
    DistillationHead,
    DistillationHeads,
    RecentMeans,
    Standardizer,
    batch_mean,
    head_soft_loss,
    soft_label_loss,
)
from exfm.layers.expert_gate import ExpertGate
from exfm.layers.flops import count_flops
from exfm.layers.gradient import scale_gradient
from exfm.layers.history_encoder import HistoryEncoder, SummaryName
from exfm.layers.jagged_attention import jagged_attention
from exfm.layers.label_unit import LabelUnit
from exfm.layers.length_groups import group_sizes
from exfm.layers.mlp import ActivationName, activation, mlp
from exfm.layers.norm import InputNormName, NormName, RMSNorm, input_norm, norm
from exfm.layers.rotary import rotate
from exfm.layers.scaled_identity import scaled_identity

__all__ = [
    "ActivationName",
    "Attention",
    "AttentionPooling",
    "CandidateMeeting",
    "DistillationHead",
    "DistillationHeads",
    "ExpertGate",
    "HistoryEncoder",
    "InputNormName",
    "JaggedAttention",
    "LabelUnit",
    "NormName",
    "RMSNorm",
    "RecentMeans",
    "Standardizer",
    "SummaryName",
    "activation",
    "batch_mean",
    "count_flops",
    "group_sizes",
    "head_soft_loss",
    "input_norm",
    "jagged_attention",
    "mlp",
    "norm",
    "rotate",
    "scale_gradient",
    "scaled_identity",
    "soft_label_loss",
    "sum_tokens",
]
