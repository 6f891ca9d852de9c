"""`rankmixer`: exfm's requirements of a backbone, and the paper's formulas, written down a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import exfm
import pytest
import torch
from exfm.testing import BackboneTests
from pydantic import ValidationError
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

import exfm_plugin_rankmixer
from exfm_plugin_rankmixer.backbone import RankmixerBackbone
from exfm_plugin_rankmixer.blocks import mix_tokens

EXAMPLE = Path(__file__).parents[1] / "examples" / "rankmixer.yaml"


class TestRankmixerBackbone(BackboneTests):
    component = RankmixerBackbone
    plugin = exfm_plugin_rankmixer
    configs = ({}, {"layers": 1, "tokens": 3, "width": 12, "expansion": 2})


def build(features: int, dim: int, **fields: int) -> RankmixerBackbone:
    torch.manual_seed(0)
    inputs = exfm.components.BackboneInputs(tokens=tuple(f"feature_{number}" for number in range(features)), dim=dim)
    return RankmixerBackbone(RankmixerBackbone.Config(**fields), inputs).double()


def by_hand(backbone: RankmixerBackbone, features: list[Tensor], fields: dict[str, int]) -> Tensor:
    """One example, token by token and head by head, from equations 1 to 6 of the paper."""
    count, width = fields["tokens"], fields["width"]
    whole = [number for feature in features for number in feature]
    part = -(-len(whole) // count)
    whole += [torch.zeros((), dtype=torch.float64)] * (count * part - len(whole))
    tokens = [
        torch.stack(whole[t * part : (t + 1) * part]) @ backbone.project.weight_TIO[t] + backbone.project.bias_TO[t]
        for t in range(count)
    ]
    layer: Any  # torch types every member of a list of modules as Tensor | Module
    for layer in backbone.layers:
        heads = [list(token.chunk(count)) for token in tokens]
        mixed = [torch.cat([heads[t][h] for t in range(count)]) for h in range(count)]
        norms = [(norm.weight, norm.bias) for norm in layer.norms]
        s = [layer_norm(mixed[t] + tokens[t], (width,), *norms[0]) for t in range(count)]
        for t in range(count):
            hidden = gelu(s[t] @ layer.up.weight_TIO[t] + layer.up.bias_TO[t])
            out = hidden @ layer.down.weight_TIO[t] + layer.down.bias_TO[t]
            tokens[t] = layer_norm(out + s[t], (width,), *norms[1])
    return torch.stack(tokens).mean(0)


@pytest.mark.parametrize(("features", "dim"), [(4, 6), (5, 7), (3, 4)])
def test_equals_the_formulas_written_down_a_second_time(features: int, dim: int) -> None:
    fields = {"layers": 3, "tokens": 4, "width": 12, "expansion": 2}
    backbone = build(features, dim, **fields)
    tokens_BND = torch.randn(5, features, dim, dtype=torch.float64)
    expected = torch.stack([by_hand(backbone, list(example), fields) for example in tokens_BND])
    torch.testing.assert_close(backbone(tokens_BND, {}), expected, rtol=1e-12, atol=1e-12)


def test_mixing_swaps_tokens_and_heads() -> None:
    x_BTD = torch.arange(2 * 3 * 6.0).view(2, 3, 6)
    mixed = mix_tokens(x_BTD)
    for token in range(3):
        for head in range(3):
            assert mixed[:, head, 2 * token : 2 * token + 2].equal(x_BTD[:, token, 2 * head : 2 * head + 2])
    assert mix_tokens(mixed).equal(x_BTD)


def test_every_token_hears_of_every_feature_after_one_layer() -> None:
    backbone = build(4, 6, layers=1, tokens=4, width=12)
    tokens_BND = torch.randn(1, 4, 6, dtype=torch.float64, requires_grad=True)
    mixed_TD = backbone.layers[0](backbone.project(tokens_BND))[0]
    for token_D in mixed_TD:
        (gradient,) = torch.autograd.grad(token_D.square().sum(), tokens_BND, retain_graph=True)
        assert gradient.abs().sum(-1).all()


def test_a_layer_has_the_weights_that_the_paper_counts() -> None:
    backbone = build(8, 8, layers=3, tokens=4, width=16, expansion=5)
    matrices = [p for name, p in backbone.layers.named_parameters() if name.endswith("weight_TIO")]
    assert sum(matrix.numel() for matrix in matrices) == 2 * 5 * 3 * 4 * 16**2


def test_tokens_that_cannot_be() -> None:
    with pytest.raises(ValidationError, match="width=10, tokens=4"):
        RankmixerBackbone.Config(width=10, tokens=4)
    with pytest.raises(ValueError, match="6 numbers of 2 features make no 4 tokens"):
        build(2, 3, tokens=4, width=16)


def test_the_example_runs(tmp_path: Path) -> None:
    smaller = ["stream.source.days=2", "stream.source.rows_per_day=1000"]
    experiment = exfm.load_experiment(str(EXAMPLE), [f"run_dir={tmp_path / 'run'}", *smaller])
    results = exfm.run(experiment)
    assert all(task["log_loss"] < 1 for model in results["models"].values() for task in model["tasks"].values())
