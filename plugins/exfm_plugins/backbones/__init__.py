"""Backbones: interaction networks from tokens to a representation."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_backbones() -> list[exfm.LazyComponent]:
    """Offers the built-in backbones."""
    return [
        exfm.LazyComponent("dcn_v2", "exfm_plugins.backbones.dcn_v2.model:DCNV2"),
        exfm.LazyComponent("deepfm", "exfm_plugins.backbones.deepfm.model:DeepFM"),
        exfm.LazyComponent("dhen", "exfm_plugins.backbones.dhen.model:DHEN"),
        exfm.LazyComponent("dlrm", "exfm_plugins.backbones.dlrm.model:DLRM"),
        exfm.LazyComponent("gem", "exfm_plugins.backbones.gem.model:GEM"),
        exfm.LazyComponent("interformer", "exfm_plugins.backbones.interformer.model:InterFormer"),
        exfm.LazyComponent("mlp", "exfm_plugins.backbones.mlp.model:MLP"),
        exfm.LazyComponent("mmoe", "exfm_plugins.backbones.mmoe.model:MMoE"),
        exfm.LazyComponent("ple", "exfm_plugins.backbones.ple.model:PLE"),
        exfm.LazyComponent("pyramid", "exfm_plugins.encoders.pyramid.backbone:PyramidBackbone"),
        exfm.LazyComponent("two_tower", "exfm_plugins.backbones.two_tower.model:TwoTower"),
        exfm.LazyComponent("wukong", "exfm_plugins.backbones.wukong.model:Wukong"),
    ]
