"""Layers that plugins share: MLPs, norms, and attention over dense tokens and over jagged sequences.

Everything here is public, and none of it is a component. What a kernel costs is known to ``count_flops``.
"""

from __future__ import annotations

from exfm.layers.attention import Attention, AttentionPooling, JaggedAttention
from exfm.layers.flops import count_flops
from exfm.layers.jagged_attention import jagged_attention
from exfm.layers.mlp import ActivationName, activation, mlp
from exfm.layers.norm import NormName, RMSNorm, norm
from exfm.layers.rotary import rotate

__all__ = [
    "ActivationName",
    "Attention",
    "AttentionPooling",
    "JaggedAttention",
    "NormName",
    "RMSNorm",
    "activation",
    "count_flops",
    "jagged_attention",
    "mlp",
    "norm",
    "rotate",
]
