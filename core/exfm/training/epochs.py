"""Trains a model again on the first windows of its stream, before it goes on with the windows after them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from exfm.config.checks import row_conditions
from exfm.config.loading import Experiment
from exfm.data.stream import ChunkReader
from exfm.distributed.chunk_exchange import read_sharded
from exfm.distributed.chunk_supervision import ChunkSupervision, open_supervision
from exfm.errors import RunError
from exfm.interfaces.data_source import TimeRange, Window
from exfm.interfaces.parallel_plan import ParallelPlan
from exfm.scheduling.schedule import Schedule
from exfm.storage.commits import NONE, Commit
from exfm.supervision.joiner import Joiner
from exfm.supervision.store import Store
from exfm.training.stage import Stage

LateLabels = Callable[[ChunkReader, Window, list[Stage], TimeRange], int]
"""Trains stages on the labels that arrived during a window, and counts the rows."""


@dataclass(frozen=True)
class _PastWindow:
    """Names a window that a model has committed, and the parts of the stream that it was read from (None: all)."""

    window: Window
    only: tuple[str, ...] | None


class Epochs:
    """Repeats the first windows of models that have ``epochs``.

    The first pass over these windows is that of any other window: predicted, supervised, committed. The further passes
    come at the beginning of the first window after them, whose commit holds their result; after a kill they begin
    again. They use labels as the first pass did, so that no label is used before it was known, and the supervision
    that the teachers committed in their first pass. Vectors of teachers are followed anew from the first window on, so
    that each example reads those that it read in the first pass, and parts are taken from the snapshots that it took.

    Args:
        experiment: the experiment.
        store: the run's folder.
        plan: the parallel plan.
    """

    def __init__(self, experiment: Experiment, store: Store, plan: ParallelPlan) -> None:
        self._experiment, self._store = experiment, store
        self._process_group, self._shard = plan.process_group, plan.shard

    def is_due(self, stage: Stage, previous: int, window: Window, schedule: Schedule) -> bool:
        """Tells whether a model has to repeat its first windows before a window.

        Args:
            previous: index of the window that the model has committed last.
        """
        epochs = stage.trainer.arm.config.epochs
        if epochs is None or stage.has_repeated or previous == NONE:
            return False
        return schedule.grid.window(previous).end_us <= epochs.until_us < window.end_us

    def repeat(
        self,
        stage: Stage,
        previous: int,
        schedule: Schedule,
        external: Mapping[str, Joiner],
        late_labels: LateLabels,
        on_chunk: Callable[[Window, int], None],
    ) -> None:
        """Trains a model on its first windows until it has seen each as many times as it is to.

        Every process calls it, after the commits before it are written.

        Args:
            external: the supervision of teachers from elsewhere, by name.
            late_labels: trains on the labels that arrived during a window.
            on_chunk: called after each chunk, with its number of rows.

        Raises:
            RunError: a part of the stream that the first pass has read is gone.
        """
        epochs = stage.trainer.arm.config.epochs
        assert epochs is not None
        windows = self._past_windows(stage, previous, schedule)
        where = row_conditions(self._experiment.arms)
        stream, schema = self._experiment.config.stream, self._experiment.schema
        for _ in range(epochs.count - 1):
            # A new reader for each pass, because a reader that has read a window refuses its ids as repeated.
            reader = ChunkReader(self._experiment.source, schema, stream, where, self._shard, self._process_group)
            stage.rewind()
            for past in windows:
                stage.take_parameters(past.window)
                with ExitStack() as stack:
                    teachers = self._teachers(stage, past.window, stack)
                    for chunk in read_sharded(reader, past.window, self._process_group, past.only):
                        joiners = dict(external)
                        for name, supervision in teachers.items():
                            joiners[name] = supervision.of_chunk(chunk)
                        stage.repeat(chunk, joiners)
                        on_chunk(past.window, chunk.size)
                late_labels(reader, past.window, [stage], schedule.span)
        stage.end_repeating()

    def _past_windows(self, stage: Stage, previous: int, schedule: Schedule) -> list[_PastWindow]:
        """Lists the windows of the model's first pass that have rows; the same on every process."""
        past: list[_PastWindow] = []
        if self._process_group.is_rank_zero:
            present = {stream_part.name for stream_part in schedule.state.parts}
            for index in self._store.log.windows("train", stage.name):
                commit = self._store.log.load("train", stage.name, index)
                if index <= previous and commit.files:
                    self._check_present(stage, commit, present)
                    past.append(_PastWindow(commit.window, tuple(commit.read.parts) or None))
        sent = self._process_group.broadcast_bytes(json.dumps(list(map(asdict, past))).encode())
        return [_PastWindow(Window(**raw["window"]), raw["only"]) for raw in json.loads(sent)]

    def _check_present(self, stage: Stage, commit: Commit, present: Collection[str]) -> None:
        gone = sorted(commit.read.parts.keys() - present)
        if gone:
            raise RunError(
                f"models.{stage.trainer.arm.base}.epochs: window {commit.window} is to be trained on again, and "
                f"{gone[0]}, from which it was read, is in the stream no more. Put it back, or start over with a later "
                "stream.start"
            )

    def _teachers(self, stage: Stage, window: Window, stack: ExitStack) -> dict[str, ChunkSupervision]:
        """Opens the committed supervision of a model's teachers, but of those whose predictions are in files."""
        streams: dict[str, ChunkSupervision] = {}
        for teacher in stage.trainer.arm.teachers:
            if teacher not in self._experiment.config.external_teachers:
                stream = open_supervision(self._store, teacher, window, self._process_group)
                if stream is not None:
                    streams[teacher] = stream
                    stack.callback(stream.close)
        return streams
