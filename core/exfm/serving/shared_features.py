"""Selects the features of which the candidates of a request share rows.

Legend: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.schema import BagFeature, Feature, SequenceFeature
from exfm.interfaces.sequence_encoder import SequenceEncoder
from exfm.modeling.ranking_model import RankingModel


def shareable_features(model: RankingModel, features: Sequence[Feature]) -> frozenset[str]:
    """Selects the features that are looked up, or encoded, once for several examples.

    These are ids, and histories whose encoder does not read the context, such as the candidate. A history that is
    averaged is shared unless its events have numbers, which are averaged example by example.

    Args:
        model: the model as it is served, in evaluation and without gradients.
        features: its features.
    """
    looked_up_elsewhere: set[str] = set()
    if model.inputs is not None:
        looked_up_elsewhere = {entity for _, entity in model.inputs.stored()}
    shared: set[str] = set()
    for feature in features:
        if isinstance(feature, SequenceFeature):
            if _is_shareable(feature, model):
                shared.add(feature.name)
        elif isinstance(feature, BagFeature) and feature.name not in looked_up_elsewhere:
            shared.add(feature.name)
    return frozenset(shared)


def _is_shareable(sequence: SequenceFeature, model: RankingModel) -> bool:
    if model.reads_sequences:
        return False
    if model.encoders:
        return not _reads_context(model.encoders[f"sequence_{sequence.name}"], model.featurizer.reads_times)
    return not any(field.kind == "dense" for field in sequence.fields)


def _reads_context(encoder: nn.Module, reads_times: bool) -> bool:
    """Tells whether an encoder's output depends on the context: then autograd has a path from one to the other."""
    assert isinstance(encoder, SequenceEncoder)
    inputs = encoder.inputs
    with torch.enable_grad():
        ages_E = torch.zeros(1, dtype=torch.int64) if reads_times else None
        history = JaggedSequence(torch.zeros(1, inputs.dim), torch.tensor([0, 1]), inputs.max_length, ages_E)
        context_BND = torch.zeros(1, len(inputs.context), inputs.dim, requires_grad=True)
        return bool(encoder(history, context_BND).requires_grad)
