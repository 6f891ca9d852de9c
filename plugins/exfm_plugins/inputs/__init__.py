"""Teacher inputs: stored teacher output as tokens of a student."""

from __future__ import annotations

import exfm


@exfm.hookimpl
def exfm_register_teacher_inputs() -> list[exfm.LazyComponent]:
    """Offers the built-in teacher inputs."""
    return [
        exfm.LazyComponent("latest_state", "exfm_plugins.inputs.latest_state.model:LatestState"),
        exfm.LazyComponent("loopfm", "exfm_plugins.inputs.loopfm.model:LoopFM"),
        exfm.LazyComponent("pair_embedding", "exfm_plugins.inputs.pair_embedding.model:PairEmbedding"),
    ]
