"""Low precision, recomputed activations, and the cost of a model."""

from __future__ import annotations

import torch

import exfm
from exfm.layers import count_flops
from exfm.modeling.cost import SECTIONS, flops_by_section, parameters_by_section, reference_cost
from exfm.parallel import CpuTrunkRunner
from exfm_plugins.backbones.dlrm.model import DLRM
from tests.modeling.cases import random_batch
from tests.modeling.test_ranking_model import MODELS, SCHEMA, build, logits, train

MODEL = MODELS["wukong+din"]
WHOLE = exfm.parallel.TrunkRunner()


def gradients(
    config: dict[str, object], size: int = 16, runner: exfm.parallel.TrunkRunner = WHOLE
) -> dict[str, torch.Tensor]:
    model = build({**MODEL, **config})
    with runner.training_step(size) as run_trunk:
        output = model(model.narrow(random_batch(SCHEMA, size)), run_trunk)
        sum(logit.square().mean() for logit in output.logits.values()).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_recomputing_activations_changes_neither_names_nor_gradients() -> None:
    plain, recomputed = gradients({}), gradients({"activation_checkpointing": True})
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, rtol=0, atol=0)


def test_a_batch_in_micro_batches_has_the_gradients_of_the_whole() -> None:
    whole, parts = gradients({}, size=1_100), gradients({}, size=1_100, runner=CpuTrunkRunner(1))
    assert whole.keys() == parts.keys()
    assert any(not torch.equal(parts[name], gradient) for name, gradient in whole.items())
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-5, atol=1e-7)


def test_recomputed_blocks_keep_less_for_backward() -> None:
    def kept(recomputed: bool) -> int:
        model = build({"backbone": {"name": "wukong", "layers": 4}, "activation_checkpointing": recomputed})
        batch = model.narrow(random_batch(SCHEMA, 64))
        saved: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = model(batch)
        assert output.logits
        return sum(saved.values())

    assert kept(True) < 0.7 * kept(False)


def test_bfloat16_is_float32_but_for_rounding_and_gives_float32() -> None:
    exact, rounded = build(MODEL), build({**MODEL, "precision": "bf16"})
    train(exact, 5)  # the exact model only, because steps would add up their roundings
    rounded.load_state_dict(exact.state_dict())
    batch = random_batch(SCHEMA, 64)
    with torch.no_grad():
        output = rounded(rounded.narrow(batch))
    assert output.representation_BR.dtype == torch.float32
    for task, logit in logits(exact, batch).items():
        assert output.logits[task].dtype == torch.float32
        assert not torch.equal(output.logits[task], logit)
        torch.testing.assert_close(output.logits[task], logit, rtol=0.05, atol=0.05)


def test_the_parts_add_up_to_the_whole() -> None:
    model = build(MODEL)
    batch = model.narrow(random_batch(SCHEMA, 16))
    flops = flops_by_section(model, batch)
    assert flops.keys() == SECTIONS.keys() - {"states", "inputs"}
    assert min(flops.values()) > 0
    assert sum(flops.values()) * batch.size == count_flops(lambda: model(batch))
    assert sum(parameters_by_section(model).values()) == model.parameter_counts()["dense"]


def test_the_cost_that_is_shown_is_that_of_the_formula() -> None:
    cost = reference_cost("backbone", DLRM)
    tokens, width = 26, 16
    first, second = DLRM.Config().hidden
    inputs = tokens * (tokens - 1) // 2 + tokens * width
    assert cost == {
        "dense_parameters": (inputs + 1) * first + (first + 1) * second,
        "flops_per_example": 2 * (tokens * tokens * width + inputs * first + first * second),
    }
