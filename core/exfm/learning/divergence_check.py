"""Checks at the end of a window that a model is finite, before anything of the window is committed."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch

from exfm.data.batch import Batch
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.local_shards import StateTensor
from exfm.learning.trainer import Trainer
from exfm.optimization.divergence import diverged
from exfm.storage.deltas import tensor_of
from exfm.storage.finite import first_not_finite, first_on_any, rows_not_finite
from exfm.supervision.store import Store

State = tuple[Mapping[str, StateTensor], Mapping[str, StateTensor]]
"""Weights and training state of a model, by name."""

FEW = 64
"""Number of examples on which final predictions are checked, and FLOPs counted: few, because either is slow."""


class DivergenceCheck:
    """Finds values of a model that are not finite; every method is a collective operation of all processes.

    Args:
        trainer: the model.
        store: the run's folder, whose newest snapshot the error names.
    """

    def __init__(self, trainer: Trainer, store: Store) -> None:
        self._trainer, self._store = trainer, store
        self._process_group = trainer.plan.process_group

    def check(self, window: Window, state: State | None, last: Batch | None) -> None:
        """Checks that a state, and the predictions that the model makes with it, are finite.

        Args:
            state: None of a window without rows.
            last: the last batch that this process has trained on; None if it trained on none.

        Raises:
            RunError: they are not; on every process.
        """
        if name := self.first_not_finite(state):
            raise self.error(window, f"{name} holds NaN or infinite values")
        if last is not None:
            forward = self._trainer.predict(last.select(torch.arange(min(last.size, FEW))))
            count = rows_not_finite([values.cpu() for values in forward.probabilities.values()])
            # Weights may be finite and yet so large that the next window would begin with NaN.
            if self._process_group.all_gather(torch.tensor(count)).any():
                raise self.error(window, "after its last step its predictions are NaN or infinite")

    def first_not_finite(self, state: State | None) -> str:
        """Names the first tensor of weights and training state that is not finite, on every process; empty without."""
        weights, training = state or ({}, {})
        name = first_not_finite({**weights, **training}, self._trainer.constants)
        return tensor_of(first_on_any(self._process_group, name))

    def error(self, window: Window, symptom: str) -> RunError:
        """Returns the error that names a symptom, its usual cause, and the command that goes on."""
        arm = self._trainer.arm
        newest = next(self._store.snapshots.newest_first(arm.name, sys.maxsize), None)
        last: Window | None = None
        if newest is not None:
            last = self._store.log.load("train", arm.name, newest.version).window
        return diverged(arm, window, symptom, last)
