"""Exercise of a parallel plan: trains a small model, saves it, loads it into another model and continues both.

``-m exfm.testing.plan_exercise PROCESSES JOBS`` does so in several processes, as torchrun starts them. JOBS is a JSON
list of ``[MODULE:CLASS, FIELDS, OPTIMIZER, OUT]``.

Legend: n rows of this process, B rows of a batch, D width of a table's rows, W width of the block.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType

from exfm.interfaces.backbone import Backbone, BackboneInputs
from exfm.interfaces.component import ComponentConfig
from exfm.interfaces.data_source import Window
from exfm.interfaces.jagged import JaggedSequence
from exfm.interfaces.local_shards import StateTensor
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.interfaces.table_optimizer import TableOptimizer
from exfm.mappings import add_prefix, map_values, strip_prefix
from exfm.storage.commits import Commit, CommitLog
from exfm.storage.shard_reader import Destinations
from exfm.storage.shard_writer import plan_shards
from exfm.storage.snapshots import SnapshotRegistry, TensorFiles
from exfm.storage.workspace import Workspace
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

    def state(self) -> dict[str, StateTensor]:
        """Returns the state that is saved, as this process stores it; a collective."""
        tables = self.parallel_model.table_optimizer_state_dict()
        state = add_prefix("weight/", self.parallel_model.state_dict()) | add_prefix("table/", tables)
        for index, parameter in enumerate(self.dense):
            momentum = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if momentum is not None:
                state[f"dense/{index}"] = momentum
        return state

    def load(self, read: Callable[[Destinations], dict[str, StateTensor]]) -> None:
        """Loads a saved state, of which this process reads its shards into its memory.

        Args:
            read: reads tensors into their destinations.
        """
        memory = add_prefix("weight/", self.parallel_model.state_dict())
        memory |= add_prefix("table/", self.parallel_model.table_optimizer_buffers())
        for index, parameter in enumerate(self.dense):
            memory[f"dense/{index}"] = torch.empty_like(parameter.detach())
        state = read(memory.get)
        self.parallel_model.load_state_dict(strip_prefix("weight/", state))
        self.parallel_model.load_table_optimizer_state_dict(strip_prefix("table/", state))
        for number, momentum in strip_prefix("dense/", state).items():
            self.optimizer.state[self.dense[int(number)]]["momentum_buffer"] = momentum


class SavedStates:
    """Saves states in a folder as snapshots, and reads them again.

    Args:
        plan: its processes, all of which save and read.
    """

    def __init__(self, plan: ParallelPlan) -> None:
        self._group = plan.process_group
        folder = tempfile.mkdtemp() if self._group.is_rank_zero else ""
        self._folder = self._group.broadcast_bytes(folder.encode()).decode()
        workspace = Workspace(self._folder)
        self._log = CommitLog(workspace)
        self._snapshots = SnapshotRegistry(workspace, self._log)
        self._count = 0

    def save(self, state: Mapping[str, StateTensor]) -> TensorFiles:
        """Saves a state, each process its shards."""
        window = Window(self._count, self._count, self._count + 1)
        self._count += 1
        weights, training = plan_shards(state, self._group), plan_shards({}, self._group)
        files = self._snapshots.write("probe", window, weights, training, self._group)
        if self._group.is_rank_zero:
            self._log.add("train", "probe", Commit(window, {"learned": []}, files))
        self._group.barrier()
        return self._snapshots.get("probe", window.index).weights

    def read(self, files: TensorFiles) -> dict[str, Tensor]:
        """Reads a state, whole."""
        return self._snapshots.load_whole(files)

    def read_into(self, files: TensorFiles, destinations: Destinations) -> dict[str, StateTensor]:
        """Reads this process's shards of a state."""
        return self._snapshots.load(files, into=destinations)

    def remove(self) -> None:
        """Removes the folder."""
        self._group.barrier()
        if self._group.is_rank_zero:
            shutil.rmtree(self._folder)


def _blank() -> KeyedJaggedTensor:
    return KeyedJaggedTensor(
        keys=list(ROWS), values=torch.zeros(0, dtype=torch.int64), lengths=torch.zeros(len(ROWS), dtype=torch.int32)
    )


def select(record: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Selects the tensors whose names begin with a prefix, and removes it."""
    return strip_prefix(prefix, record)


def exercise(plan: ParallelPlan, optimizer: TableOptimizer) -> dict[str, Tensor]:
    """Trains a model, saves it, loads its state into another model, and continues both.

    The record has:

    - ``start/...`` and ``end/...``, the saved states before and after training, and ``losses``, the losses of training;
    - ``continued`` and ``resumed``, the losses of both models afterwards;
    - for a plan that resets rows, ``before/...`` and ``reset/...``, the states before and after a reset, and
      ``reset_continued`` and ``reset_resumed``, the losses of both models afterwards.
    """
    saved = SavedStates(plan)
    saving = Exercise(plan, optimizer, seed=0)
    record = add_prefix("start/", saved.read(saved.save(saving.state())))
    record["losses"] = saving.train(range(STEPS))
    end = saved.save(saving.state())
    record |= add_prefix("end/", saved.read(end))
    loading = Exercise(plan, optimizer, seed=1)
    loading.load(partial(saved.read_into, end))
    record["continued"] = saving.train(range(STEPS, 2 * STEPS))
    record["resumed"] = loading.train(range(STEPS, 2 * STEPS))
    if plan.resets_rows:
        record |= add_prefix("before/", saved.read(saved.save(saving.state())))
        saving.reset_rows()
        reset = saved.save(saving.state())
        record |= add_prefix("reset/", saved.read(reset))
        # A reset of other rows on some rank shows here, because this model reads each box from one of the ranks.
        loading.load(partial(saved.read_into, reset))
        record["reset_continued"] = saving.train(range(STEPS))
        record["reset_resumed"] = loading.train(range(STEPS))
    saved.remove()
    return record


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
