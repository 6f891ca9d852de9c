"""Builds the served layers of a model over plain tensors, as ``torch.export`` captures them.

Legend: B examples, V values of a feature, E events, G numbers of an event, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, embedding_bag, pad

from exfm.config.checks import Arm
from exfm.data.batch import Batch, SequenceBatch
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.schema import DenseFeature, FeatureSchema, SequenceFeature
from exfm.interfaces.sequence_encoder import SequenceEncoder
from exfm.interfaces.trunk import Sequences, Trunk
from exfm.interfaces.vector_feature import VectorFeature
from exfm.mappings import names_of
from exfm.modeling.build import build_model
from exfm.modeling.embeddings import Lookup
from exfm.modeling.parts import table_of
from exfm.modeling.tokens import map_ids
from exfm.serving.description import (
    AGES,
    DENSE,
    embedding_input,
    examples_input,
    input_specs,
    vector_input,
    without_times,
)
from exfm.serving.quantised_tables import QuantisedTable, dequantise
from exfm.serving.shared_features import shareable_features
from exfm.storage.finite import infinite_buffers


@dataclass(frozen=True)
class _Bags:
    """Holds a feature's table rows (V,) and the start of each example (B,), with the methods of a JaggedTensor.

    Attributes:
        weights_V: weights of the rows; None where the feature has none.
        examples_B: which of fewer bags each example has; None where each has its own.
    """

    rows_V: Tensor
    starts: Tensor
    weights_V: Tensor | None
    examples_B: Tensor | None

    def values(self) -> Tensor:
        return self.rows_V

    def offsets(self) -> Tensor:
        return torch.cat([self.starts, torch.full_like(self.starts[:1], self.rows_V.shape[0])])


@dataclass(frozen=True)
class _Histories(SequenceBatch):
    """Holds histories which several examples may share.

    Attributes:
        examples_B: which of fewer histories each example has; None where each has its own.
    """

    examples_B: Tensor | None = None


Bag = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""Pools table rows: maps the rows' numbers (V,), the table, the start of each example (B,) and the weights of the rows
(V,) to their sum, or without weights to their mean, (B, D)."""


def pool_fused(rows_V: Tensor, table: Tensor, starts: Tensor, weights_V: Tensor | None) -> Tensor:
    """Pools rows with torch's kernel."""
    if weights_V is not None:
        return embedding_bag(rows_V, table, starts, mode="sum", per_sample_weights=weights_V)
    return embedding_bag(rows_V, table, starts, mode="mean")


def pool_by_adding(rows_V: Tensor, table: Tensor, starts: Tensor, weights_V: Tensor | None) -> Tensor:
    """Pools rows with operations that ONNX has; its translation of ``embedding_bag`` is a loop over the examples."""
    ones_B = torch.ones_like(starts)
    # The example of a row is the number of examples that have begun, less 1. A place more, because examples without
    # rows at the end begin after the last row.
    begun = torch.zeros_like(torch.cat([rows_V, starts[:1]])).index_put((starts,), ones_B, accumulate=True)
    example_V = begun.cumsum(0)[:-1] - 1
    vectors_VD = embedding(rows_V, table)
    if weights_V is not None:
        vectors_VD = vectors_VD * weights_V.unsqueeze(1)
    sums_BD = torch.zeros_like(starts, dtype=table.dtype).unsqueeze(1).expand(-1, table.shape[1])
    sums_BD = sums_BD.index_put((example_V,), vectors_VD, accumulate=True)
    if weights_V is not None:
        return sums_BD
    count_B = torch.zeros_like(starts).index_put((example_V,), torch.ones_like(example_V), accumulate=True)
    return sums_BD / count_B.clamp(min=1).unsqueeze(1)


class _Tables(nn.Module):
    """Looks up the tables of a model in plain torch, for every feature and every field of a sequence.

    Args:
        lookups: the lookups of the model.
        weights: weights of the tables, by table.
        averaged: whether a sequence's field is averaged over the events.
        bag: pools the rows of examples, as ``embedding_bag`` does.
        quantised: the same tables in 8 bits, which are read in the place of ``weights``.
    """

    def __init__(
        self,
        lookups: Sequence[Lookup],
        weights: Mapping[str, Tensor],
        averaged: bool,
        bag: Bag,
        quantised: Mapping[str, QuantisedTable],
    ) -> None:
        super().__init__()
        self.lookups = tuple(lookups)
        self.averaged, self.bag = averaged, bag
        self.tables = nn.ParameterDict()
        self.quantised = frozenset(quantised)
        for table, rows in weights.items():
            if table in quantised:
                rows = quantised[table].codes_RD
                self.tables[f"scale_{table}"] = nn.Parameter(quantised[table].scales_R2, requires_grad=False)
            self.tables[f"table_{table}"] = nn.Parameter(rows, requires_grad=False)

    def forward(self, batch: Batch) -> dict[Lookup, Tensor]:
        """Returns (B, D) for every lookup, (E, D) for a sequence's field that is not averaged."""
        return {lookup: self._rows(lookup, batch) for lookup in self.lookups}

    def _rows(self, lookup: Lookup, batch: Batch) -> Tensor:
        if lookup.field is None:
            bags = batch.sparse[lookup.key]
            pooled = self._pool(lookup.table, bags.rows_V, bags.starts, bags.weights_V)
            return _of_examples(pooled, bags.examples_B)
        history = batch.sequences[lookup.key]
        assert isinstance(history, _Histories)
        if self.averaged:
            averaged = self._pool(lookup.table, history.ids_EC[:, lookup.field], history.offsets[:-1], None)
            return _of_examples(averaged, history.examples_B)
        return self._vectors(lookup.table, history.ids_EC[:, lookup.field])

    def _pool(self, table: str, rows_V: Tensor, starts: Tensor, weights_V: Tensor | None) -> Tensor:
        if table not in self.quantised:
            return self.bag(rows_V, self.tables[f"table_{table}"], starts, weights_V)
        vectors_VD = self._vectors(table, rows_V)
        # The vectors are pooled as a table whose rows are looked up in order.
        return self.bag(torch.arange(vectors_VD.shape[0]), vectors_VD, starts, weights_V)

    def _vectors(self, table: str, rows_V: Tensor) -> Tensor:
        weight = self.tables[f"table_{table}"]
        if table not in self.quantised:
            return embedding(rows_V, weight)
        return dequantise(weight.index_select(0, rows_V), self.tables[f"scale_{table}"].index_select(0, rows_V))


def _of_examples(rows: Tensor, examples_B: Tensor | None) -> Tensor:
    """Returns the row of each example, (B, ...), of which several may share one."""
    return rows if examples_B is None else rows.index_select(0, examples_B)


class ServedModel(nn.Module):
    """Maps the tensors of ``input_specs`` to the prediction of each task, such as a probability (B,).

    Args:
        arm: the model.
        schema: the stream's schema.
        weights: weights of the model's snapshot.
        bag: pools the table rows of examples.
        requests: whether examples share rows of features, as the candidates of a request share their context.
        quantised: tables that are stored in 8 bits, by the key of their weights.

    Attributes:
        shared: the features of which examples share rows; see ``shareable_features``.
        constants: names of buffers that are infinite by design.
        embeddings: width of the embedding of each example that it reads as input, by teacher.

    Raises:
        ConfigError: a component refuses its config or its inputs.
    """

    def __init__(
        self,
        arm: Arm,
        schema: FeatureSchema,
        weights: Mapping[str, Tensor],
        bag: Bag = pool_fused,
        *,
        requests: bool = False,
        quantised: Mapping[str, QuantisedTable] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        # Initialization draws random numbers, which must not change those of the caller.
        with torch.random.fork_rng(devices=[]):
            self.model = build_model(without_teaching(arm), schema)
        self.constants = infinite_buffers(self.model)
        featurizer = self.model.featurizer
        seen = schema.select(arm.config.features).features
        self.features = seen if featurizer.reads_times else tuple(without_times(seen))
        self.embeddings = {} if self.model.inputs is None else self.model.inputs.embedding_dims
        tables = {table_of(key): key for key in weights if table_of(key)}
        fields = list(chain.from_iterable(featurizer.fields.values()))
        lookups = [*featurizer.bags, *fields]
        table_weights = {lookup.table: weights[tables[lookup.table]] for lookup in lookups}
        # Remove TorchRec's tables before loading, so that their keys are not expected.
        featurizer.events = None
        featurizer.pooled = None
        layers = {}
        for key, value in weights.items():
            if key not in tables.values() and not _is_teaching_state(key):
                layers[key] = value
        self.model.load_state_dict(layers)
        # The rows of managed ids are resolved before the featurizer, see `batch`.
        self.managed, featurizer.managed = featurizer.managed, nn.ModuleDict()
        if lookups:
            stored = {table: quantised[key] for table, key in tables.items() if key in quantised}
            plain = _Tables(lookups, table_weights, not featurizer.raw_sequences, bag, stored)
            featurizer.pooled = plain  # type: ignore[assignment]
        self.eval().requires_grad_(False)
        self.shared = shareable_features(self.model, self.features) if requests else frozenset()
        self.names = names_of(input_specs(self.features, self.embeddings, self.shared))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Returns the prediction of each task, (B,), or (B, C) of a multiclass label."""
        inputs = dict(zip(self.names, tensors, strict=True))

        def run_shared(encoder: nn.Module, sequence: JaggedSequence, context_BND: Tensor) -> Tensor:
            assert isinstance(encoder, SequenceEncoder)
            examples_B = inputs.get(examples_input(encoder.inputs.sequence))
            if examples_B is not None:
                # Its output does not depend on the context.
                context_BND = context_BND.new_zeros(sequence.batch_size, *context_BND.shape[1:])
            return _of_examples(encoder(sequence, context_BND), examples_B)

        def run_trunk(trunk: Trunk, tokens: Sequence[Tensor], sequences: Sequences) -> Tensor:
            return self.model.represent(tokens, sequences, run_encoder=run_shared)

        output = self.model(self.batch(tensors), run_trunk)
        return tuple(self.model.predictions(output).values())

    def batch(self, tensors: Sequence[Tensor]) -> Batch:
        """Builds a batch of the tensors of ``input_specs``, without ids, times and labels."""
        inputs = dict(zip(self.names, tensors, strict=True))
        sparse: dict[str, _Bags] = {}
        sequences: dict[str, SequenceBatch] = {}
        vectors: dict[str, Tensor] = {}
        # The last input has B rows in every model; a batch's ids and times, which serving lacks, are not read.
        per_example = inputs[self.names[-1]]
        for feature in self.features:
            if isinstance(feature, SequenceFeature):
                sequences[feature.name] = _history(feature, inputs, self.managed)
            elif isinstance(feature, VectorFeature):
                vectors[feature.name] = inputs[vector_input(feature)]
            elif not isinstance(feature, DenseFeature):
                rows_V = map_ids(self.managed, feature.table_name, inputs[f"{feature.name}.rows"])
                weights_V = inputs.get(f"{feature.name}.weights")
                examples_B = inputs.get(examples_input(feature.name))
                sparse[feature.name] = _Bags(rows_V, inputs[f"{feature.name}.starts"], weights_V, examples_B)
        dense_BF = inputs[DENSE] if DENSE in inputs else torch.zeros(per_example.shape[0], 0)
        embeddings = {teacher: inputs[embedding_input(teacher)] for teacher in self.embeddings}
        no_labels: dict[str, Tensor] = {}
        return Batch(
            *(per_example, per_example, per_example, dense_BF, sparse, sequences, no_labels, no_labels, embeddings),
            vectors=vectors,
        )


def without_teaching(arm: Arm) -> Arm:
    """Returns the arm without the settings that only training and teaching need."""
    teaches = arm.config.supervision.model_copy(update={"states": {}, "embedding_dim": None})
    config = arm.config.model_copy(update={"supervision": teaches, "activation_checkpointing": False})
    return replace(arm, config=config)


def _is_teaching_state(key: str) -> bool:
    """Tells whether a weight belongs to the compact states that a teacher writes."""
    return key.startswith(("states.", "read_states."))


def _history(feature: SequenceFeature, inputs: Mapping[str, Tensor], managed: nn.ModuleDict) -> SequenceBatch:
    lengths = inputs[f"{feature.name}.lengths"]
    fields = []
    for field in feature.fields:
        if field.kind == "categorical":
            ids_E = inputs[f"{feature.name}.{field.name}"]
            fields.append(map_ids(managed, feature.table_name(field), ids_E))
    numbers_EG = inputs.get(f"{feature.name}.numbers")
    events = (fields[0] if fields else numbers_EG).shape[0]  # type: ignore[union-attr]
    # Stored field by field: with columns of an (E, C) tensor, torch.export would require E > 1.
    ids_EC = torch.stack(fields).t() if fields else torch.zeros(events, 0, dtype=torch.int64)
    offsets = pad(lengths.cumsum(0), (1, 0))
    if numbers_EG is None:
        numbers_EG = torch.zeros(events, 0)
    ages_E, examples_B = inputs.get(f"{feature.name}.{AGES}"), inputs.get(examples_input(feature.name))
    return _Histories(ids_EC, numbers_EG, offsets, ages_E, examples_B)
