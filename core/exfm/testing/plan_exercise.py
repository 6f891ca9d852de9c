"""What a parallel plan is put through: a small model is trained, saved, put back and trained on.

In several processes torchrun runs this module: ``-m exfm.testing.plan_exercise JOBS``, a JSON list of
``[MODULE:CLASS, FIELDS, OPTIMIZER, OUT]``.

Legend: n own rows, B rows of a batch, D width of a table's rows, W width of the block.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from exfm.interfaces.backbone import Backbone, BackboneInputs
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.parallel_plan import ParallelPlan, TableOptimizer
from exfm.modeling.parts import model_memory

ROWS = {"user": 30, "item": 50}
DIM, WIDTH, STEPS = 8, 6, 6
DENSE_LR, MOMENTUM = 0.05, 0.9
SIZES = (13, 8, 1, 16, 3, 12)
"""Rows of each step's batch. With one row, most processes have none."""
ADDS_UP = 4
"""The batch after which dense layers make no step: its gradient is added to the next one's."""

STARTED, LIKE = (3, 29, 31), (40, 12, 45)
"""Rows of the item table that are started, and those whose weights they take."""

Batch = tuple[KeyedJaggedTensor, Tensor]


class _Block(Backbone):
    """A backbone of one block, which a plan may shard."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__(ComponentConfig(), BackboneInputs(tuple(ROWS), DIM))
        self.layers = nn.ModuleList([nn.Linear(len(ROWS) * DIM, WIDTH)])
        self.output_dim = WIDTH

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        hidden_BW: Tensor = torch.tanh(self.layers[0](tokens_BND.flatten(1)))
        return hidden_BW


class Probe(nn.Module):
    """Two table collections, a backbone and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (_collection(name, rows) for name, rows in ROWS.items())
        self.backbone = _Block()
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, features: KeyedJaggedTensor) -> Tensor:
        """Maps bags of n examples to logits (n, 1)."""
        rows = [self.first(_only(features, "user")).values(), self.second(_only(features, "item")).values()]
        logit_n1: Tensor = self.head(self.backbone(torch.stack(rows, dim=1), {}))
        return logit_n1

    def dense_parameters(self) -> list[nn.Parameter]:
        """All but the tables."""
        return [*self.backbone.parameters(), *self.head.parameters()]


def _collection(name: str, rows: int) -> EmbeddingBagCollection:
    config = EmbeddingBagConfig(
        name=f"table_{name}",
        embedding_dim=DIM,
        num_embeddings=rows,
        feature_names=[name],
        pooling=PoolingType.MEAN,
        weight_init_min=-0.5,
        weight_init_max=0.5,
    )
    return EmbeddingBagCollection(device=torch.device("meta"), tables=[config])


def _only(features: KeyedJaggedTensor, key: str) -> KeyedJaggedTensor:
    return features.permute([features.keys().index(key)])


def batch(step: int, rows: Tensor | None = None) -> Batch:
    """Bags of up to four ids and labels of a step's rows: of all by default."""
    generator = torch.Generator().manual_seed(step)
    size = SIZES[step % len(SIZES)]
    lengths_FB = torch.randint(5, (len(ROWS), size), generator=generator)
    label_B = torch.randint(2, (size,), generator=generator).float()
    wanted = torch.arange(size) if rows is None else rows
    values, lengths = [], []
    for count, length_B in zip(ROWS.values(), lengths_FB, strict=True):
        ids = torch.split(torch.randint(count, (int(length_B.sum()),), generator=generator), length_B.tolist())
        values += [ids[row] for row in wanted.tolist()]
        lengths.append(length_B[wanted])
    nothing = torch.zeros(0, dtype=torch.int64)
    features = KeyedJaggedTensor(
        keys=list(ROWS), values=torch.cat([nothing, *values]), lengths=torch.cat(lengths).to(torch.int32)
    )
    return features, label_B[wanted]


class Exercise:
    """One model under a plan.

    Args:
        seed: of its first weights.
    """

    def __init__(self, plan: ParallelPlan, optimizer: TableOptimizer, seed: int) -> None:
        self.plan = plan
        torch.manual_seed(seed)
        self.model = Probe()
        self.parallel_model = plan.parallelize(self.model, optimizer)
        placed = self.parallel_model.module
        assert placed is self.model, f"parallelize places a {type(placed).__name__}: shard the model in place"
        self.dense = self.model.dense_parameters()
        self.optimizer = torch.optim.SGD(self.dense, lr=DENSE_LR, momentum=MOMENTUM, foreach=False)

    def train(self, steps: range) -> Tensor:
        """The losses of some steps."""
        return torch.stack([self._step(step) for step in steps])

    def reset_rows(self) -> None:
        """Reassigns some rows to new ids."""
        rows, like = (torch.tensor(chosen, device=self.plan.device) for chosen in (STARTED, LIKE))
        self.parallel_model.reset_rows("table_item", rows, like)

    def _step(self, step: int) -> Tensor:
        process_group, shard = self.plan.process_group, self.plan.shard
        size = SIZES[step % len(SIZES)]
        counts = [len(range(index, size, shard.count)) for index in range(shard.count)]
        own = torch.arange(shard.index, size, shard.count)
        features, label_n = batch(step, own) if own.numel() else (_blank(), torch.zeros(0))
        logit_n1 = self.model(features.to(self.plan.device))[: own.numel()]
        (logit_B1,) = process_group.all_gather_columns([logit_n1], counts)
        label_B = process_group.all_gather_rows(label_n.to(self.plan.device), counts)
        loss = nn.functional.binary_cross_entropy_with_logits(logit_B1.squeeze(1), label_B)
        last = step % len(SIZES) != ADDS_UP
        self.parallel_model.set_gradient_sync(last)
        loss.backward()  # type: ignore[no-untyped-call]
        self.parallel_model.sync_tables()
        if last:
            self.parallel_model.reduce_gradients(self.dense)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach().cpu()

    def state(self) -> dict[str, Tensor]:
        """Everything, whole: weights, and the states of both optimizers."""
        tables = self.parallel_model.table_optimizer_state_dict()
        found = {f"weight/{name}": value for name, value in self.parallel_model.state_dict().items()}
        found |= {f"table/{name}": value for name, value in tables.items()}
        for index, parameter in enumerate(self.dense):
            kept = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if kept is not None:
                found[f"dense/{index}"] = self.parallel_model.full_tensor(kept)
        return {name: value.clone() for name, value in found.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what ``state`` gave on the first process; read into the model where it fits, as snapshots are."""
        weights = _read_into(model_memory(self.model), dict(_part(state, "weight/")))
        tables = _read_into(self.parallel_model.table_optimizer_buffers(), dict(_part(state, "table/")))
        self.parallel_model.load_state_dict(weights)
        self.parallel_model.load_table_optimizer_state_dict(tables)
        for index, value in _part(state, "dense/"):
            parameter = self.dense[int(index)]
            self.optimizer.state[parameter]["momentum_buffer"] = self.parallel_model.distribute_tensor(value, parameter)


def _read_into(memory: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a state holds, in the memory that there is for it."""
    found = dict(state)
    for name in memory.keys() & state.keys():
        if memory[name].shape == state[name].shape:
            found[name] = memory[name].detach().copy_(state[name])
    return found


def _blank() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(ROWS), values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(len(ROWS), dtype=torch.int32)
    )


def _part(state: Mapping[str, Tensor], prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in state.items():
        if name.startswith(prefix):
            yield name.removeprefix(prefix), value


def exercise(plan: ParallelPlan, optimizer: TableOptimizer) -> dict[str, Tensor]:
    """Trains a model, puts its state into another, and trains both on.

    Returns:
        On the first process ``start/...``, the state before training; ``losses``, those of training; ``end/...``, the
        state after; ``on`` and ``again``, the losses of both models from there. What is put back comes from a file,
        so every process reads it: here it is the first process's, sent to all. Of a plan that resets rows also
        ``before/...`` and ``started/...``, the state on both sides of it, and ``started_on`` and ``started_again``.
    """
    one = Exercise(plan, optimizer, seed=0)
    found = {f"start/{name}": value for name, value in one.state().items()}
    found["losses"] = one.train(range(STEPS))
    end = one.state()
    found |= {f"end/{name}": value for name, value in end.items()}
    other = Exercise(plan, optimizer, seed=1)
    other.load(_from_first(plan, end))
    found["on"] = one.train(range(STEPS, 2 * STEPS))
    found["again"] = other.train(range(STEPS, 2 * STEPS))
    if plan.resets_rows:
        found |= {f"before/{name}": value for name, value in one.state().items()}
        one.reset_rows()
        started = one.state()
        found |= {f"started/{name}": value for name, value in started.items()}
        other.load(_from_first(plan, started))  # the same on every process, as what `one` keeps must be
        found |= {"started_on": one.train(range(STEPS)), "started_again": other.train(range(STEPS))}
    return found


def _from_first(plan: ParallelPlan, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first process's state on every process."""
    group = plan.process_group
    if group.world_size == 1:
        return dict(state)
    shapes = {name: list(value.shape) for name, value in state.items()}
    sent = group.broadcast_bytes(json.dumps(shapes).encode() if group.is_rank_zero else b"")
    shared: dict[str, Tensor] = {}
    for name, shape in json.loads(sent).items():
        size = torch.Size(shape).numel()
        counts = [size, *(0 for _ in range(group.world_size - 1))]
        rows = state[name].flatten() if group.is_rank_zero else torch.zeros(0)
        shared[name] = group.all_gather_rows(rows, counts).view(shape)
    return shared


def main(jobs: str) -> None:
    """Exercises plans, one after the other, in one of torchrun's processes; the first one writes what it found."""
    for component, fields, optimizer, out in json.loads(jobs):
        module, _, name = component.partition(":")
        plan_class: Any = getattr(import_module(module), name)
        plan = plan_class(plan_class.Config.model_validate(json.loads(fields)))
        found = exercise(plan, TableOptimizer.model_validate({"name": optimizer}))
        if plan.process_group.is_rank_zero:
            save_file({key: value.contiguous() for key, value in found.items()}, out)
        plan.process_group.barrier()
    os._exit(0)  # a thread of the connection may abort a process whose interpreter ends


if __name__ == "__main__":
    main(sys.argv[1])
