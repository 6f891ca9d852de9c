"""Runs the trunk of a model on a CPU: a large batch in micro-batches, on several threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from exfm.interfaces.backbone import Backbone
from exfm.interfaces.process_group import ProcessGroup
from exfm.interfaces.trunk import RunTrunk, Sequences, Trunk, TrunkRunner
from exfm.parallel.cast_weights import cast_weights
from exfm.parallel.threaded_forward import threaded_forward
from exfm.parallel.threads import one_thread

MICROBATCH_SIZE = 512
"""Examples of a micro-batch; 256 and 1,024 gain less (benchmarks/NOTES.md)."""

MIN_THREAD_EXAMPLES = 512
"""Examples of a thread at least: with fewer, threads wait for Python more than they gain (benchmarks/NOTES.md)."""


@dataclass(frozen=True)
class CpuTrunkRunner(TrunkRunner):
    """Divides a large batch between threads, and each thread's examples into micro-batches of the backbone.

    A CPU keeps the intermediate results of a micro-batch in its cache, and the allocator their memory. A backbone that
    reads sequences, or computes in bfloat16, gets all examples of a thread at once.

    Args:
        threads: the largest number of threads; torch's threads are idle meanwhile.
        microbatch_size: examples of a call of the backbone.
    """

    threads: int
    microbatch_size: int = MICROBATCH_SIZE

    @contextmanager
    def training_step(self, examples: int) -> Iterator[RunTrunk]:
        """Enters a training step; all its operations use a single thread where threads share the trunk."""
        threaded = self.threads > 1 and examples >= self.threads * MIN_THREAD_EXAMPLES
        # torch's idle threads would poll for work, on the cores of the threads that share the trunk.
        threads = one_thread() if threaded else nullcontext()
        with threads:
            yield self._run_threaded if threaded else self._run

    def _run_threaded(self, trunk: Trunk, inputs: Sequence[Tensor], sequences: Sequences) -> Tensor:
        parameters = list(trunk.trunk_parameters())
        casts = cast_weights(parameters) if trunk.low_precision else nullcontext()
        with casts:
            return threaded_forward(partial(self._run, trunk), inputs, sequences, parameters, self.threads)

    def _run(self, trunk: Trunk, inputs: Sequence[Tensor], sequences: Sequences) -> Tensor:
        return trunk.represent(inputs, sequences, self._run_backbone)

    def _run_backbone(self, backbone: Backbone, tokens_BND: Tensor, sequences: Sequences) -> Tensor:
        # Micro-batches make steps in bfloat16 slower, and would add gradients of a weight in bfloat16.
        whole = backbone.consumes_sequences or torch.is_autocast_enabled(tokens_BND.device.type)
        if whole or tokens_BND.shape[0] <= self.microbatch_size:
            representation_BR: Tensor = backbone(tokens_BND, sequences)
            return representation_BR
        outputs = [backbone(microbatch, {}) for microbatch in torch.split(tokens_BND, self.microbatch_size)]
        return torch.cat(outputs)


def select_trunk_runner(device: torch.device, process_group: ProcessGroup, threads: int | None = None) -> TrunkRunner:
    """Selects the runner of a device: a CPU that the process need not share with others divides large batches.

    Args:
        threads: the largest number of threads; by default torch's. A plan whose blocks are not re-entrant takes 1.
    """
    if device.type == "cpu" and process_group.world_size == 1:
        return CpuTrunkRunner(threads or torch.get_num_threads())
    return TrunkRunner()
