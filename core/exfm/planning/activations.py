"""What a training step keeps between its forward and its backward pass, counted without memory for it.

Floating-point tensors are fake: they have shapes and no memory. Integers are real, so that what depends on the lengths
of histories happens as in a run.

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
from exfm.interfaces.schema import CategoricalFeature, DenseFeature, FeatureSchema, MultiValuedFeature, SequenceFeature
from exfm.modeling.ranking_model import RankingModel


def activation_bytes(model: RankingModel, schema: FeatureSchema, size: int, lengths: Mapping[str, int]) -> int:
    """Bytes that the forward pass of B examples keeps for the backward pass, each storage once.

    Looked-up rows count, tables and other parameters do not.

    Args:
        model: on the meta device; afterwards it can only be counted again.
        schema: the stream's.
        size: B.
        lengths: ids of a multi-valued feature and events of a sequence, for each example.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    _make_fake(model, mode)
    dense = [feature.name for feature in schema.features if isinstance(feature, DenseFeature)]
    model.dense_columns = torch.tensor([i for i, name in enumerate(dense) if name in model.feature_names]).long()
    parameters = {_key(parameter) for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in parameters:
            kept[_key(tensor)] = tensor  # held, so that no other storage gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(model.narrow(_full_batch(schema, size, lengths)))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _key(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _make_fake(model: RankingModel, mode: FakeTensorMode) -> None:
    for part in (model.featurizer.pooled, model.featurizer.events):
        if part is not None and not isinstance(part.bags, _Rows):
            configs = part.bags.embedding_bag_configs()
            part.bags = _Rows(sum(one.embedding_dim * len(one.feature_names) for one in configs), mode)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(_fake(parameter, mode), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, _fake(buffer, mode))


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    if not tensor.is_floating_point():
        return torch.zeros(tensor.shape, dtype=tensor.dtype)
    with mode:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


@dataclass(frozen=True)
class _Found:
    """Looked-up rows as TorchRec gives them."""

    rows: Tensor

    def values(self) -> Tensor:
        return self.rows


class _Rows(nn.Module):
    """In the place of a collection of tables: rows of so many numbers, without the tables."""

    def __init__(self, width: int, mode: FakeTensorMode) -> None:
        super().__init__()
        self.width, self.mode = width, mode

    def forward(self, features: KeyedJaggedTensor) -> _Found:
        with self.mode:
            return _Found(torch.empty(features.stride(), self.width, requires_grad=True))


def _full_batch(schema: FeatureSchema, size: int, lengths: Mapping[str, int]) -> Batch:
    """B examples that have all they can have; every id is 0."""
    batch = blank_batch(schema, size)
    bags = [one for one in schema.features if isinstance(one, CategoricalFeature | MultiValuedFeature)]
    counts = [lengths.get(feature.name, 1) for feature in bags]
    sparse = KeyedJaggedTensor(
        keys=[feature.name for feature in bags],
        values=torch.zeros(size * sum(counts), dtype=torch.int64),
        lengths=torch.tensor(counts, dtype=torch.int32).repeat_interleave(size),
        stride=size,
    )
    sequences = {
        feature.name: _full_sequence(batch.sequences[feature.name], size, lengths[feature.name])
        for feature in schema.features
        if isinstance(feature, SequenceFeature)
    }
    return replace(batch, sparse=sparse, sequences=sequences)


def _full_sequence(blank: SequenceBatch, size: int, events: int) -> SequenceBatch:
    return SequenceBatch(
        torch.zeros(size * events, blank.ids_EC.shape[1], dtype=torch.int64),
        torch.zeros(size * events, blank.dense_EG.shape[1]),
        torch.arange(size + 1) * events,
        None if blank.ages_E is None else torch.zeros(size * events, dtype=torch.int64),
    )
