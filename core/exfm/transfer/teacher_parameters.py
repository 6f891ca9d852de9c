"""Loads model parts of teachers' snapshots into students at each window, as causally as supervision."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection

from torch import Tensor

from exfm.config.loading import Experiment
from exfm.config.retention import parameter_teachers, retention_of_arm
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.duration import microseconds
from exfm.interfaces.process_group import ProcessGroup
from exfm.modeling.growth import Growth
from exfm.modeling.parts import grouped, part_of
from exfm.storage.progress import needed_from_us
from exfm.storage.snapshots import same_on_all
from exfm.supervision.store import Store
from exfm.transfer.student_parameters import ModelParts, StudentParameters

logger = logging.getLogger(__name__)


class TeacherParameters:
    """Selects the teacher snapshot of each student and window, and loads its model parts into the student.

    A window starts with the teacher's newest snapshot whose watermark lies at or before the window's start less the
    teacher's delay. It is read from the store also where the teacher is trained in this process. No wait is needed,
    because the snapshot was committed before the teacher's supervision of the window, which the window waits for.

    Attributes:
        consumers: the arms that read a model's parameters, by model.
        lags_us: how long a model's vectors are in flight, by model.
    """

    def __init__(self, experiment: Experiment, store: Store) -> None:
        self.store = store
        arms = experiment.arms
        self.consumers: dict[str, list[str]] = {arm.name: [] for arm in arms}
        for student in arms:
            for teacher in parameter_teachers(student) & self.consumers.keys():
                self.consumers[teacher].append(student.name)
        self._retention = {arm.name: retention_of_arm(arm) for arm in arms}
        teachers = [*arms, *(lender.arm for lender in experiment.lenders.values())]
        self.delay_us = {arm.name: microseconds(arm.config.supervision.delay) for arm in teachers}
        self.lags_us = {arm.name: microseconds(arm.config.supervision.lag) for arm in teachers}

    def load_into(self, student: StudentParameters, growth: Growth, group: ProcessGroup, window: Window) -> None:
        """Begins a window of a student: loads the model parts that it takes from its teachers' snapshots.

        Args:
            student: the parameters that the student takes.
            growth: grows tables of older snapshots to their present number of rows.
            group: the processes that train the student.
            window: the window that begins.

        Raises:
            RunError: a teacher has snapshots that are old enough, but no such snapshot can be read.
        """
        for teacher, names in student.parts_to_read().items():
            parts = self._parts(teacher, names, window.start_us - self.delay_us[teacher], growth, group)
            if parts:
                student.load(teacher, parts)
        student.begin()

    def _parts(
        self, teacher: str, names: Collection[str], before_us: int, growth: Growth, group: ProcessGroup
    ) -> ModelParts:
        """Reads model parts of the newest snapshot with a watermark at or before a time; empty without a snapshot."""
        failure: RunError | None = None
        home = self.store.home(teacher)
        for snapshot in same_on_all(group, home.store.snapshots.published(home.model, before_us)):
            tensors: dict[str, Tensor] = {}
            error: RunError | None = None
            try:
                tensors = home.store.snapshots.load_whole(snapshot.weights, lambda key: part_of(key)[0] in names)
            except RunError as unreadable:
                error = unreadable
            # All processes read the same snapshot or none: a process that failed alone would train on other weights.
            if group.all_agree(error is None):
                return grouped(growth.grow_whole(tensors))
            error = error or RunError(f"snapshot {snapshot.version} of {teacher!r}: another process cannot read it")
            logger.warning("%s; taking the parts of the snapshot before it", error)
            failure = failure or error
        if failure is not None:
            raise failure
        return {}

    def needed_us(self, teacher: str) -> int:
        """Returns the earliest time for which a student may still read a snapshot of a teacher."""
        needed = sys.maxsize
        for student in self.consumers[teacher]:
            from_us = needed_from_us(self.store.log, student, self._retention[student])
            needed = min(needed, from_us - self.delay_us[teacher])
        return needed
