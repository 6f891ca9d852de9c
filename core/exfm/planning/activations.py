"""Counts the activations that a training step saves for its backward pass, and its FLOPs, without allocating memory.

Floating-point tensors are fake: they have shapes and no memory. Integers are real, because their values, such as the
lengths of histories, determine the shapes of other tensors.

Legend: B examples, E events.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchrec import KeyedJaggedTensor

from exfm.data.batch import Batch, SequenceBatch
from exfm.data.blank import blank_batch
from exfm.interfaces.schema import BagFeature, FeatureSchema, SequenceFeature
from exfm.layers.flops import flop_counter
from exfm.mappings import names_of
from exfm.modeling.ranking_model import RankingModel
from exfm.planning.saved_bytes import make_fake, saved_bytes


@dataclass(frozen=True)
class ForwardCost:
    """Holds the memory and the work of a forward pass.

    Attributes:
        saved_bytes: bytes that it saves for the backward pass, each storage once. Looked-up rows count, tables and
            other parameters do not.
        flops: FLOPs of its matrix products and attention.
    """

    saved_bytes: int
    flops: int


def forward_cost(model: RankingModel, schema: FeatureSchema, size: int, lengths: Mapping[str, int]) -> ForwardCost:
    """Counts the memory and the work of the forward pass of B examples.

    Args:
        model: model on the meta device, which afterwards can only be passed to this function again.
        schema: the stream's schema.
        size: B.
        lengths: ids of each multi-valued feature and events of each sequence, per example.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _make_fake(model, mode)
    dense = names_of(schema.dense)
    # A buffer of integers, which fakes cannot be: it is computed as the model computes it.
    model.dense_columns = torch.tensor([i for i, name in enumerate(dense) if name in model.feature_names]).long()
    batch = model.narrow(_full_batch(schema, size, lengths))
    if model.inputs is not None:
        widths = model.inputs.embedding_dims
        batch = replace(batch, embeddings={name: torch.zeros(size, width) for name, width in widths.items()})
    with flop_counter() as counter:
        saved = saved_bytes(lambda: model(batch), model.parameters())
    return ForwardCost(saved, int(counter.get_total_flops()))


def _make_fake(model: RankingModel, mode: FakeTensorMode) -> None:
    """Replaces tables by ``_Rows``, and floating-point parameters and buffers by fake tensors."""
    for lookups in (model.featurizer.pooled, model.featurizer.events):
        if lookups is not None and not isinstance(lookups.bags, _Rows):
            configs = lookups.bags.embedding_bag_configs()
            keys = [key for config in configs for key in config.feature_names]
            lookups.bags = _Rows(keys, configs[0].embedding_dim, mode)
    make_fake(model, mode)


@dataclass(frozen=True)
class _LookedUp:
    """Holds looked-up rows with the methods of TorchRec's result."""

    rows: Tensor
    names: list[str]

    def keys(self) -> list[str]:
        return self.names

    def values(self) -> Tensor:
        return self.rows


class _Rows(nn.Module):
    """Stands for a collection of tables, and returns fake rows of its width."""

    def __init__(self, keys: list[str], dim: int, mode: FakeTensorMode) -> None:
        super().__init__()
        self.keys, self.width, self.mode = keys, dim * len(keys), mode

    def forward(self, features: KeyedJaggedTensor) -> _LookedUp:
        with self.mode:
            return _LookedUp(torch.empty(features.stride(), self.width, requires_grad=True), self.keys)


def _full_batch(schema: FeatureSchema, size: int, lengths: Mapping[str, int]) -> Batch:
    """Makes B examples with the planned lengths; every id is 0, because values do not change memory."""
    batch = blank_batch(schema, size)
    keys: list[str] = []
    counts: list[int] = []
    for feature in schema.features:
        if isinstance(feature, BagFeature):
            keys.append(feature.name)
            counts.append(lengths.get(feature.name, 1))
    # The planned lengths in every example, so that the result is the memory of the largest batch.
    sparse = KeyedJaggedTensor(
        keys=keys,
        values=torch.zeros(size * sum(counts), dtype=torch.int64),
        lengths=torch.tensor(counts, dtype=torch.int32).repeat_interleave(size),
        stride=size,
        weights=torch.zeros(size * sum(counts)) if schema.weighs_ids else None,
    )
    sequences: dict[str, SequenceBatch] = {}
    for feature in schema.features:
        if isinstance(feature, SequenceFeature):
            blank = batch.sequences[feature.name]
            sequences[feature.name] = _full_sequence(blank, size, lengths[feature.name])
    return replace(batch, sparse=sparse, sequences=sequences)


def _full_sequence(blank: SequenceBatch, size: int, events: int) -> SequenceBatch:
    ids_EC = torch.zeros(size * events, blank.ids_EC.shape[1], dtype=torch.int64)
    dense_EG = torch.zeros(size * events, blank.dense_EG.shape[1])
    ages_E: Tensor | None = None
    if blank.ages_E is not None:
        ages_E = torch.zeros(size * events, dtype=torch.int64)
    return SequenceBatch(ids_EC, dense_EG, torch.arange(size + 1) * events, ages_E)
