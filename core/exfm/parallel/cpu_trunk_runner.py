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
from exfm.parallel.threads import restored_threads

MICROBATCH_SIZE = 512
"""Examples of a micro-batch; 256 and 1,024 gain less (benchmarks/NOTES.md)."""

MIN_THREAD_EXAMPLES = 512
"""Examples of a thread at least: with fewer, threads wait for Python more than they gain (benchmarks/NOTES.md)."""


ONE_THREAD_WORK = 1 << 28
"""Multiplications of a forward pass below which a step stays on one thread: a few milliseconds of products, in dozens
of operations at whose end threads would wait for each other."""


@dataclass(frozen=True)
class CpuTrunkRunner(TrunkRunner):
    """Divides a large batch between threads, and each thread's examples into micro-batches; little work has one thread.

    A CPU keeps the intermediate results of a micro-batch in its cache, and the allocator their memory. A backbone that
    reads sequences, or computes in bfloat16, gets all examples of a thread at once.

    Args:
        threads: the largest number of threads that share a batch; torch's threads are idle meanwhile.
        microbatch_size: examples of a call of the backbone.
    """

    threads: int
    microbatch_size: int = MICROBATCH_SIZE

    @contextmanager
    def training_step(self, examples: int) -> Iterator[RunTrunk]:
        """Enters a training step, on a single torch thread up to the trunk, and after it where the step is small.

        torch's idle threads would poll for work after each operation, on the cores of threads that share the trunk.
        """
        threaded = self.threads > 1 and examples >= self.threads * MIN_THREAD_EXAMPLES
        with restored_threads() as before:
            torch.set_num_threads(1)
            yield self._run_threaded if threaded else partial(self._run_by_size, before)

    def _run_by_size(self, torch_threads: int, trunk: Trunk, inputs: Sequence[Tensor], sequences: Sequences) -> Tensor:
        """Runs the trunk; the step goes on with torch's threads, to its end, where the batch is enough work."""
        if trunk.multiplications(inputs[0].shape[0], sequences) >= ONE_THREAD_WORK:
            torch.set_num_threads(torch_threads)
        return self._run(trunk, inputs, sequences)

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
