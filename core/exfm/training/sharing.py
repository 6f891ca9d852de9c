"""Parts of teachers' snapshots for students, window by window: by the same rule of time as supervision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection

from torch import Tensor

from exfm.config.loading import Experiment
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.transfer_strategy import Parts
from exfm.modeling.parts import grouped, part_of
from exfm.supervision.commits import NONE
from exfm.supervision.snapshots import same_on_all
from exfm.supervision.store import Store
from exfm.training.building import lenders
from exfm.training.trainer import Trainer

logger = logging.getLogger(__name__)


class Sharing:
    """Who reads whose parts, from which snapshot, and how long the teachers' states and rows are on their way.

    A window starts with the teacher's newest snapshot whose watermark lies at or before the window's start less the
    teacher's delay. It is read from the store also where the teacher is trained in this process. To wait for it is not
    necessary: it was committed before the teacher's supervision of the window, which the window waits for.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.store = store
        arms = experiment.arms
        self.borrowers = {arm.name: [one.name for one in arms if arm.name in lenders(one)] for arm in arms}
        self.delay_us = {arm.name: microseconds(arm.config.supervision.delay) for arm in arms}
        self.lags_us = {arm.name: microseconds(arm.config.supervision.lag) for arm in arms}

    def tell(self, trainer: Trainer, window: Window) -> None:
        """Tells a model's strategies of their teachers' parts, before the window's first batch.

        Raises:
            RunError: a teacher has snapshots that are old enough, and none of them can be read.
        """
        for strategy in trainer.list_strategies():
            names = strategy.teacher_parts()
            teacher = strategy.config.teacher
            parts = self._parts(trainer, teacher, names, window.start_us - self.delay_us[teacher]) if names else {}
            if parts:
                trainer.refresh(strategy, parts)

    def _parts(self, student: Trainer, teacher: str, names: Collection[str], before_us: int) -> Parts:
        """Parts of the newest snapshot with a watermark at or before a time; none before there is one."""
        failure: RunError | None = None
        for snapshot in same_on_all(student.plan.process_group, self.store.snapshots.published(teacher, before_us)):
            found: dict[str, Tensor] = {}
            error: RunError | None = None
            try:
                found = self.store.snapshots.load_some(snapshot.weights, lambda key: part_of(key)[0] in names)
            except RunError as unreadable:
                error = unreadable
            if student.plan.process_group.all_agree(error is None):
                return grouped(student.growth.of(found))
            error = error or RunError(f"snapshot {snapshot.version} of {teacher!r}: another process cannot read it")
            logger.warning("%s; taking the parts of the snapshot before it", error)
            failure = failure or error
        if failure is not None:
            raise failure
        return {}

    def needed_us(self, teacher: str) -> int:
        """The earliest time for which a student may still want a snapshot of a teacher.

        A student whose newest snapshot is lost goes back to the one before it, so its last window counts as undone.
        """
        needed = sys.maxsize
        for student in self.borrowers[teacher]:
            done = self.store.log.head("train", student)
            start_us = 0 if done == NONE else self.store.log.load("train", student, done).window.start_us
            needed = min(needed, start_us - self.delay_us[teacher])
        return needed
