"""Adds the teachers' embeddings of the examples that a model reads as input to a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from exfm.distributed.chunk_exchange import ModelBatch
from exfm.modeling.ranking_model import RankingModel
from exfm.supervision.joiner import Joined, embedding_input, slice_output


def join_embeddings(batch: ModelBatch, model: RankingModel, joined: Mapping[str, Joined]) -> ModelBatch:
    """Returns a batch with the embeddings that a model reads.

    Args:
        joined: supervision of all rows of the chunk that the model reads, by teacher.
    """
    if model.inputs is None or not model.inputs.embedding_dims:
        return batch
    embeddings: dict[str, Tensor] = {}
    for teacher in model.inputs.embedding_dims:
        stored_BK = embedding_input(slice_output(joined[teacher].supervision, batch.rows))
        # The blank example of an empty shard has no embedding.
        blank = batch.batch.size - stored_BK.shape[0]
        embeddings[teacher] = torch.nn.functional.pad(stored_BK, (0, 0, 0, blank), value=torch.nan)
    return replace(batch, batch=replace(batch.batch, embeddings=embeddings))
