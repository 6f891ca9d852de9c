"""Blocks that torch compiles, and products in fp8, of a whole model."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import exfm
from exfm.layers.fp8 import use_fp8
from exfm.modeling import block_kernels
from exfm.modeling.compiled_blocks import compile_blocks
from exfm.modeling.cost import flops_by_section
from tests.modeling.cases import random_batch
from tests.modeling.test_ranking_model import SCHEMA, build, logits
from tests.training.logs import experiment_dict, load, make_log, train, write_log

MODEL = {"backbone": {"name": "wukong", "layers": 2}}


# Dynamo looks at gradients of tensors that are no leaves, and outside of tests swallows torch's warning.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_blocks_are_equal_and_compile_once_for_batches_of_any_size() -> None:
    torch._dynamo.reset()
    config = {**MODEL, "activation_checkpointing": True}
    plain, compiled = build(config), build(config)
    # Without code generation, which takes a minute on a CPU; graphs and guards are the same.
    backend = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled.trunk_networks(), backend=backend)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    graphs: list[int] = []
    # No size is a width of the model, because dynamo would take the two for the same number.
    for size in (11, 5, 2):
        batch = random_batch(SCHEMA, size)
        for model in (plain, compiled):
            for parameter in model.dense_parameters():
                parameter.grad = None
            output = model(model.narrow(batch))
            sum(logit.square().mean() for logit in output.logits.values()).backward()
        gradients = dict(plain.named_parameters())
        for name, parameter in compiled.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-6)
        graphs.append(backend.frame_count)
    assert graphs == [graphs[0]] * 3
    # The first block is apart, because its input needs no further gradient than tokens do.
    assert 0 < graphs[0] <= 2 * len(plain.blocks())
    batch = plain.narrow(random_batch(SCHEMA, 8))
    assert flops_by_section(compiled, batch) == flops_by_section(plain, batch)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_run_compiles_its_blocks_after_counting_flops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    backend = CompileCounterWithBackend("eager")
    monkeypatch.setattr(block_kernels, "compile_blocks", partial(compile_blocks, backend=backend))
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=200)), str(tmp_path / "run"))
    config["models"] = {"fm": {"backbone": {"name": "mlp"}, "compile": True, "batch_size": 32}}
    train(load(tmp_path, config))
    assert 0 < backend.frame_count <= 4


def test_a_model_in_fp8_is_close_to_itself_in_bf16() -> None:
    config = {
        **MODEL,
        "precision": "fp8",
        "embedding_dim": 16,
        "backbone": {"name": "mlp", "hidden": [64, 32]},
        "sequence_encoder": None,
    }
    plain, rounded = build(config), build(config)
    # Of the first layer, whose input has 5 tokens or more of 16 numbers, and of the second.
    assert sum(map(use_fp8, rounded.trunk_networks())) == 2
    batch = random_batch(SCHEMA, 16)
    for task, logit in logits(plain, batch).items():
        other = logits(rounded, batch)[task]
        assert not torch.equal(other, logit)
        torch.testing.assert_close(other, logit, rtol=0.1, atol=0.05)


def test_a_device_without_fp8_is_refused(tmp_path: Path) -> None:
    config = experiment_dict(write_log(tmp_path / "log", make_log(rows=50)), str(tmp_path / "run"))
    config["models"] = {"fm": {"backbone": {"name": "mlp"}, "precision": "fp8", "batch_size": 32}}
    with pytest.raises(exfm.ConfigError, match=r"models\.fm\.precision: .*capability 8\.9.*on cpu; allowed here: fp32"):
        train(load(tmp_path, config))
