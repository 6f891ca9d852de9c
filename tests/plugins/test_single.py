"""The single plan: a single device, fused tables, optimizer state that can be put back, and equal bits every time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

import exfm
import exfm_plugins.parallel
from exfm.interfaces.local_shards import StateTensor, whole_tensors
from exfm_plugins.parallel.single.plan import Single
from tests.plugins.checks import check_offers

ROWS = {"user": 30, "item": 50}
OPTIMIZERS = ["adagrad", "rowwise_adagrad", "sgd"]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Two threads, so that an order of sums that depends on them would show."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Two(nn.Module):
    """Two collections, as a model has that reads sequences, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            EmbeddingBagCollection(
                device=torch.device("meta"),
                tables=[EmbeddingBagConfig(name=name, embedding_dim=8, num_embeddings=rows, feature_names=[name])],
            )
            for name, rows in ROWS.items()
        )
        self.top = nn.Linear(16, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        parts = [self.first(features).values(), self.second(features).values()]
        logit: Tensor = self.top(torch.cat(parts, dim=1))
        return logit.squeeze(1)


def optimizer(name: str, **fields: Any) -> exfm.parallel.TableOptimizer:
    return exfm.parallel.TableOptimizer.model_validate({"name": name, **fields})


def placed(name: str, seed: int = 0, **fields: Any) -> tuple[exfm.parallel.ParallelModel, Two]:
    torch.manual_seed(seed)
    model = Two()
    return Single(Single.Config(device="cpu")).parallelize(model, optimizer(name, **fields)), model


def bags(seed: int, size: int = 256) -> KeyedJaggedTensor:
    """Bags of up to five ids: nearly every row occurs often."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(6, (2 * size,), generator=generator)
    counts = lengths.view(2, size).sum(dim=1).tolist()
    values = [torch.randint(rows, (n,), generator=generator) for rows, n in zip(ROWS.values(), counts, strict=True)]
    return KeyedJaggedTensor(keys=list(ROWS), values=torch.cat(values), lengths=lengths.to(torch.int32))


def train(parallel: exfm.parallel.ParallelModel, model: Two, seeds: range) -> list[float]:
    losses = []
    for seed in seeds:
        loss = (model(bags(seed)) - 1).square().mean()
        loss.backward()
        parallel.sync_tables()
        losses.append(loss.item())
    return losses


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_equal_bits(first: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert first.keys() == other.keys()
    assert [name for name, value in first.items() if not torch.equal(value, other[name])] == []


def test_it_is_offered_and_the_default() -> None:
    check_offers(exfm_plugins.parallel, Single)
    assert Single.is_default


def test_one_process_reads_all_rows() -> None:
    plan = Single(Single.Config(device="cpu"))
    assert plan.shard == exfm.sources.Shard(0, 1)
    assert plan.device == torch.device("cpu")


def test_tables_get_memory_on_the_device() -> None:
    _, model = placed("adagrad")
    assert {value.device for value in model.state_dict().values()} == {torch.device("cpu")}
    assert {name for name in model.state_dict() if "embedding_bags" in name} == {
        "first.embedding_bags.user.weight",
        "second.embedding_bags.item.weight",
    }


def copies(state: Mapping[str, StateTensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in whole_tensors(state).items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_runs_are_equal_bit_by_bit(name: str) -> None:
    results = []
    for _ in range(2):
        parallel, model = placed(name)
        losses = train(parallel, model, range(50))
        accumulators = {
            key: value.clone() for key, value in whole_tensors(parallel.table_optimizer_state_dict()).items()
        }
        results.append((losses, state(model), accumulators))
    assert results[0][0] == results[1][0]
    assert results[0][0][-1] < results[0][0][0]
    assert_equal_bits(results[0][1], results[1][1])
    assert_equal_bits(results[0][2], results[1][2])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_put_back_it_goes_on_as_if_nothing_had_happened(name: str) -> None:
    parallel, model = placed(name)
    train(parallel, model, range(10))
    weights = state(model)
    accumulators = copies(parallel.table_optimizer_state_dict())
    expected = train(parallel, model, range(10, 20))
    other_parallel, other = placed(name, seed=1)
    other.load_state_dict(weights)
    other_parallel.load_table_optimizer_state_dict(accumulators)
    assert_equal_bits(whole_tensors(other_parallel.table_optimizer_state_dict()), accumulators)
    assert train(other_parallel, other, range(10, 20)) == expected
    assert_equal_bits(state(other), state(model))
    if name != "sgd":
        fresh_parallel, fresh = placed(name)
        fresh.load_state_dict(weights)
        assert train(fresh_parallel, fresh, range(10, 20)) != expected, "the accumulators matter"


@pytest.mark.parametrize(("name", "width"), [("adagrad", 8), ("rowwise_adagrad", 1), ("sgd", 0)])
def test_the_state_is_what_the_optimizer_needs(name: str, width: int) -> None:
    parallel, _ = placed(name)
    sizes = {key: value.numel() for key, value in whole_tensors(parallel.table_optimizer_state_dict()).items()}
    assert sum(sizes.values()) == width * sum(ROWS.values())
    assert all(key.startswith(("first.", "second.")) for key in sizes)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_learning_rate_and_eps_take_effect(name: str) -> None:
    """One bag of one id, whose gradient is known."""
    features = KeyedJaggedTensor(keys=list(ROWS), values=torch.tensor([3, 4]), lengths=torch.ones(2, dtype=torch.int32))
    _, model = placed(name, lr=0.25, eps=0.5)
    before = state(model)
    model(features).sum().backward()
    gradients = dict(
        zip(("first.embedding_bags.user", "second.embedding_bags.item"), model.top.weight[0].split(8), strict=True)
    )
    for (key, gradient), row in zip(gradients.items(), (3, 4), strict=True):
        square = gradient.square().mean() if name == "rowwise_adagrad" else gradient.square()
        scale = 1.0 if name == "sgd" else 1 / (square.sqrt() + 0.5)
        expected = before[f"{key}.weight"].clone()
        expected[row] -= 0.25 * scale * gradient.detach()
        torch.testing.assert_close(model.state_dict()[f"{key}.weight"], expected.detach())


def test_auto_takes_a_gpu_when_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for there, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert Single(Single.Config()).device == torch.device(device)


def many(threads: int) -> list[Tensor]:
    """Predictions and tables of three steps over tables that average and tables that add up."""
    torch.set_num_threads(threads)
    names = [f"t{number}" for number in range(20)]
    pooling = [PoolingType.SUM] * 13 + [PoolingType.MEAN] * 7
    torch.manual_seed(0)
    model = nn.Sequential(
        EmbeddingBagCollection(
            device=torch.device("meta"),
            tables=[
                EmbeddingBagConfig(name=name, embedding_dim=4, num_embeddings=50, feature_names=[name], pooling=kind)
                for name, kind in zip(names, pooling, strict=True)
            ],
        )
    )
    Single(Single.Config(device="cpu")).parallelize(model, optimizer("adagrad"))
    seen = []
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(3, (20 * 500,), generator=generator)
        ids = torch.randint(50, (int(lengths.sum()),), generator=generator)
        rows = model(KeyedJaggedTensor(keys=names, values=ids, lengths=lengths.to(torch.int32))).values()
        rows.square().sum().backward()
        seen.append(rows.detach())
    with torch.no_grad():
        seen.append(model(KeyedJaggedTensor(keys=names, values=ids, lengths=lengths.to(torch.int32))).values())
    return [*seen, *model.state_dict().values()]


def test_tables_dealt_out_to_threads_are_the_same_tables() -> None:
    sequential, threaded = many(1), many(2)
    assert len(sequential) == 24
    for expected, actual in zip(sequential, threaded, strict=True):
        assert torch.equal(actual, expected)
