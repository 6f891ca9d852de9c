"""`pair_embedding`: the teacher's embedding of the example as an input token."""

from __future__ import annotations

import torch

import exfm_plugins.inputs
from exfm.testing import TeacherInputTests
from exfm.transfer import EXAMPLE, InputSpec, VectorHistory
from exfm_plugins.inputs.pair_embedding.model import PairEmbedding


class TestPairEmbedding(TeacherInputTests):
    component = PairEmbedding
    plugin = exfm_plugins.inputs


def test_a_token_is_the_map_of_the_normalised_embedding_and_learned_where_there_is_none() -> None:
    module = PairEmbedding(PairEmbedding.Config(teacher="fm"), InputSpec(4, 1, {EXAMPLE: 6})).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    embedding_BK = torch.randn(3, 6).double() * 10 + 5
    valid_B1 = torch.tensor([[True], [False], [True]])
    tokens_BD = module({EXAMPLE: VectorHistory(embedding_BK.unsqueeze(1), valid_B1)}).squeeze(1)
    centred_BK = embedding_BK - embedding_BK.mean(1, keepdim=True)
    scaled_BK = centred_BK / (centred_BK.square().mean(1, keepdim=True) + module.norm.eps).sqrt()
    normalised_BK = scaled_BK * module.norm.weight + module.norm.bias
    mapped_BD = normalised_BK @ module.projection.weight.T + module.projection.bias
    torch.testing.assert_close(tokens_BD[[0, 2]], mapped_BD[[0, 2]])
    assert torch.equal(tokens_BD[1], module.miss_D)
