"""Judges a model's windows as they end: gathers the figures of its gate, and makes all processes decide alike."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from exfm.config.checks import Arm
from exfm.distributed.chunk_exchange import ModelBatch
from exfm.evaluation.metrics import Moments
from exfm.interfaces.data_source import Window
from exfm.interfaces.process_group import ProcessGroup
from exfm.learning.trainer import Forward
from exfm.storage.commits import CommitLog
from exfm.training.gate import Comparison, Scores, judge, read_history
from exfm.training.predecessor import Predecessor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judgement:
    """Says whether the snapshot after a window is published.

    Attributes:
        held: by task, why it is held; empty if it is published.
        comparison: with the newest snapshot published before; None without a gate, or before there is a snapshot.
    """

    held: dict[str, str] = field(default_factory=dict)
    comparison: Comparison | None = None

    def counters(self) -> dict[str, Any]:
        """Returns the judgement, for the commit of the window."""
        compared = None if self.comparison is None else asdict(self.comparison)
        return {"held": self.held, "compared": compared}


class WindowGate:
    """Judges the windows of a model; publishes all of a model without a gate.

    Args:
        arm: the model.
        tasks: its tasks whose labels are known at a window's end.
        log: its commits.
        process_group: the processes that train it.
        predecessor: predicts with its newest published snapshot; None where the gate does not compare.
    """

    def __init__(
        self,
        arm: Arm,
        tasks: tuple[str, ...],
        log: CommitLog,
        process_group: ProcessGroup,
        predecessor: Predecessor | None,
    ) -> None:
        self._arm, self._tasks, self._log = arm, tasks, log
        self._process_group = process_group
        self._predecessor = predecessor

    def begin(self) -> None:
        """Starts a window."""
        if self._predecessor is not None:
            self._predecessor.begin()

    def add(self, batch: ModelBatch, forward: Forward) -> None:
        """Adds a batch of the window, with the forward pass before the step on it."""
        if self._predecessor is not None:
            self._predecessor.keep(batch.batch, batch.shard, forward)

    def judge(self, window: Window, scores: Scores) -> Judgement:
        """Judges a window that ends; a collective operation of all processes.

        Args:
            scores: sums over the window's prequential predictions, by task.

        Raises:
            RunError: no published snapshot can be read, although there are some.
        """
        config = self._arm.config.gate
        if config is None:
            return Judgement()
        comparison = None
        if self._predecessor is not None:
            comparison = self._predecessor.compare(window, self._tasks)
        held: dict[str, str] = {}
        # On rank zero, because a listing of the store may differ between machines.
        if self._process_group.is_rank_zero:
            history = read_history(self._log, self._arm.name, window.index, config.windows)
            # Later labels are not known yet when the window ends.
            prompt = {task: scores.get(task, Moments()) for task in self._tasks}
            held = judge(config, window, prompt, history, comparison)
            for reason in held.values():
                logger.warning("%s: the snapshot after window %s is held: %s", self._arm.name, window, reason)
        decided: dict[str, str] = json.loads(self._process_group.broadcast_bytes(json.dumps(held).encode()))
        return Judgement(decided, comparison)
