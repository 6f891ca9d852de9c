"""Exercise of a parallel plan: trains a small model, saves it, loads it into another model and continues both.

``-m exfm.testing.plan_exercise PROCESSES JOBS`` does so in several processes, as torchrun starts them. JOBS is a JSON
list of ``[MODULE:CLASS, FIELDS, OPTIMIZER, OUT]``.

Legend: n rows of this process, B rows of a batch, D width of a table's rows, W width of the block.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Mapping
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
from exfm.mappings import add_prefix, map_values, strip_prefix
from exfm.modeling.parts import model_memory
from exfm.testing.torchrun import launch

ROWS = {"user": 30, "item": 50}
DIM, WIDTH, STEPS = 8, 6, 6
DENSE_LR, MOMENTUM = 0.05, 0.9
MAX_NORM = 0.2
"""The largest norm of dense gradients: some steps are clipped, and others are not."""
SIZES = (13, 8, 1, 16, 3, 12)
"""Rows of each step's batch. With a single row, most processes have none."""
ACCUMULATED_BATCH = 4
"""The batch after which dense layers do not step: its gradient is added to that of the next batch."""

RESET_ROWS, SOURCE_ROWS = (3, 29, 31), (40, 12, 45)
"""Rows of the item table that are reset, and the rows whose weights are copied to them."""

Batch = tuple[KeyedJaggedTensor, Tensor]


class _Block(Backbone):
    """A backbone of a single block, which a plan may shard."""

    name = "probe"

    def __init__(self) -> None:
        super().__init__(ComponentConfig(), BackboneInputs(tuple(ROWS), DIM))
        self.layers = nn.ModuleList([nn.Linear(len(ROWS) * DIM, WIDTH)])
        self.output_dim = WIDTH

    def forward(self, tokens_BND: Tensor, sequences: Mapping[str, JaggedSequence]) -> Tensor:
        hidden_BW: Tensor = torch.tanh(self.layers[0](tokens_BND.flatten(1)))
        return hidden_BW


class Probe(nn.Module):
    """A model of two table collections, a backbone and a head."""

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
        """Lists the parameters outside the tables."""
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
    """Draws bags of up to four ids and the labels of a step, and selects rows, by default all.

    All processes draw the whole batch under the same seed, so that their rows belong to the same batch.
    """
    generator = torch.Generator().manual_seed(step)
    size = SIZES[step % len(SIZES)]
    lengths_FB = torch.randint(5, (len(ROWS), size), generator=generator)
    label_B = torch.randint(2, (size,), generator=generator).float()
    rows = torch.arange(size) if rows is None else rows
    values, lengths = [], []
    for count, length_B in zip(ROWS.values(), lengths_FB, strict=True):
        ids = torch.split(torch.randint(count, (int(length_B.sum()),), generator=generator), length_B.tolist())
        values += [ids[row] for row in rows.tolist()]
        lengths.append(length_B[rows])
    # torch.cat refuses an empty list.
    nothing = torch.zeros(0, dtype=torch.int64)
    features = KeyedJaggedTensor(
        keys=list(ROWS), values=torch.cat([nothing, *values]), lengths=torch.cat(lengths).to(torch.int32)
    )
    return features, label_B[rows]


class Exercise:
    """A model under a plan, with an optimizer of its dense layers.

    Args:
        plan: places the model.
        optimizer: of the tables.
        seed: of the initial weights.
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
        """Trains some steps, and returns their losses."""
        return torch.stack(list(map(self._step, steps)))

    def reset_rows(self) -> None:
        """Reassigns some rows to new ids."""
        rows = torch.tensor(RESET_ROWS, device=self.plan.device)
        source_rows = torch.tensor(SOURCE_ROWS, device=self.plan.device)
        self.parallel_model.reset_rows("table_item", rows, source_rows)

    def _step(self, step: int) -> Tensor:
        process_group, shard = self.plan.process_group, self.plan.shard
        size = SIZES[step % len(SIZES)]
        counts = [len(range(index, size, shard.count)) for index in range(shard.count)]
        rows = torch.arange(shard.index, size, shard.count)
        # A process without rows takes part in the collectives with a batch of an empty bag.
        features, label_n = batch(step, rows) if rows.numel() else (_blank(), torch.zeros(0))
        logit_n1 = self.model(features.to(self.plan.device))[: rows.numel()]
        (logit_B1,) = process_group.all_gather_columns([logit_n1], counts)
        label_B = process_group.all_gather_rows(label_n.to(self.plan.device), counts)
        loss = nn.functional.binary_cross_entropy_with_logits(logit_B1.squeeze(1), label_B)
        steps_dense = step % len(SIZES) != ACCUMULATED_BATCH
        self.parallel_model.set_gradient_sync(steps_dense)
        loss.backward()  # type: ignore[no-untyped-call]
        self.parallel_model.sync_tables()
        if steps_dense:
            self.parallel_model.reduce_gradients(self.dense)
            self.parallel_model.clip_gradients(self.dense, MAX_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss.detach().cpu()

    def state(self) -> dict[str, Tensor]:
        """Returns the whole weights, and the whole states of both optimizers."""
        tables = self.parallel_model.table_optimizer_state_dict()
        state = _prefixed("weight/", self.parallel_model.state_dict()) | _prefixed("table/", tables)
        for index, parameter in enumerate(self.dense):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                state[f"dense/{index}"] = self.parallel_model.full_tensor(momentum)
        # Copied, because on a CPU the tensors may be the model's, which later steps change in place.
        return map_values(torch.clone, state)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Loads rank 0's ``state``; its tensors are read into the model's memory where they fit, as snapshots are."""
        weights = _read_into(model_memory(self.model), select(state, "weight/"))
        tables = _read_into(self.parallel_model.table_optimizer_buffers(), select(state, "table/"))
        self.parallel_model.load_state_dict(weights)
        self.parallel_model.load_table_optimizer_state_dict(tables)
        for index, value in select(state, "dense/").items():
            parameter = self.dense[int(index)]
            self.optimizer.state[parameter]["momentum_buffer"] = self.parallel_model.distribute_tensor(value, parameter)


def _read_into(memory: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies tensors of a state into memory of the same name and shape, and returns the state with that memory."""
    loaded = dict(state)
    for name in memory.keys() & state.keys():
        if memory[name].shape == state[name].shape:
            loaded[name] = memory[name].detach().copy_(state[name])
    return loaded


def _blank() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(ROWS), values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(len(ROWS), dtype=torch.int32)
    )


def select(record: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Selects the tensors whose names begin with a prefix, and removes it."""
    return strip_prefix(prefix, record)


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return add_prefix(prefix, state)


def exercise(plan: ParallelPlan, optimizer: TableOptimizer) -> dict[str, Tensor]:
    """Trains a model, loads its state into another model, and continues both.

    The record of rank 0 has:

    - ``start/...`` and ``end/...``, the states before and after training, and ``losses``, the losses of training;
    - ``continued`` and ``resumed``, the losses of both models afterwards;
    - for a plan that resets rows, ``before/...`` and ``reset/...``, the states before and after a reset, and
      ``reset_continued`` and ``reset_resumed``, the losses of both models afterwards.
    """
    saving = Exercise(plan, optimizer, seed=0)
    record = _prefixed("start/", saving.state())
    record["losses"] = saving.train(range(STEPS))
    end = saving.state()
    record |= _prefixed("end/", end)
    loading = Exercise(plan, optimizer, seed=1)
    loading.load(_broadcast(plan, end))
    record["continued"] = saving.train(range(STEPS, 2 * STEPS))
    record["resumed"] = loading.train(range(STEPS, 2 * STEPS))
    if plan.resets_rows:
        record |= _prefixed("before/", saving.state())
        saving.reset_rows()
        reset = saving.state()
        record |= _prefixed("reset/", reset)
        # A wrong reset on another rank than 0 shows here, because this model has rank 0's state on every process.
        loading.load(_broadcast(plan, reset))
        record["reset_continued"] = saving.train(range(STEPS))
        record["reset_resumed"] = loading.train(range(STEPS))
    return record


def _broadcast(plan: ParallelPlan, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns rank 0's state on every process, as if each of them read it from a snapshot."""
    group = plan.process_group
    if group.world_size == 1:
        return dict(state)
    shapes = {name: list(value.shape) for name, value in state.items()}
    # As JSON first, because the other processes do not have all names.
    sent = group.broadcast_bytes(json.dumps(shapes).encode() if group.is_rank_zero else b"")
    shared: dict[str, Tensor] = {}
    for name, shape in json.loads(sent).items():
        size = torch.Size(shape).numel()
        counts = [size, *(0 for _ in range(group.world_size - 1))]
        rows = state[name].flatten() if group.is_rank_zero else torch.zeros(0)
        shared[name] = group.all_gather_rows(rows, counts).view(shape)
    return shared


def run_jobs(jobs: str) -> None:
    """Exercises plans in turn, in each process that is started; rank 0 writes the records."""
    for component, fields, optimizer, out in json.loads(jobs):
        module, _, name = component.partition(":")
        plan_class: Any = getattr(import_module(module), name)
        plan = plan_class(plan_class.Config.model_validate(json.loads(fields)))
        record = exercise(plan, TableOptimizer.model_validate({"name": optimizer}))
        if plan.process_group.is_rank_zero:
            save_file(map_values(Tensor.contiguous, record), out)
        plan.process_group.barrier()
    # A thread of the connection may abort a process whose interpreter is finalized.
    atexit.register(os._exit, 0)


if __name__ == "__main__":
    launch(run_jobs, sys.argv[2], processes=int(sys.argv[1]))
