"""Predicts the rows of concurrent requests together, and takes over new weights while requests run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from exfm.errors import ConfigError, RunError
from exfm.serving.description import Description
from exfm.serving.predictor import Predictor
from exfm.serving.request import repeat_context

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Answer:
    """Holds the predictions of a request.

    Attributes:
        columns: the columns that the model read, of B rows.
        snapshot: the snapshot that predicted all of them.
        predictions: (B,), or (B, C) of a multiclass label, by task.
        context: the columns that all rows have in common, of a single row; None where there are none.
    """

    columns: pa.RecordBatch
    snapshot: int
    predictions: Mapping[str, npt.NDArray[np.float32]]
    context: pa.RecordBatch | None = None

    def rows(self) -> pa.RecordBatch:
        """Returns all columns of each row."""
        if self.context is None:
            return self.columns
        return repeat_context(self.context, self.columns)


@dataclass(frozen=True)
class _Request:
    rows: Sequence[Row]
    answer: Future[Answer]
    context: Row | None = None


class Service:
    """Answers requests in a background thread.

    Rows of requests that wait while a prediction runs are predicted together afterwards. Where that fails, each
    request is predicted alone, so that the rows of one client cannot fail those of another.

    Args:
        predictor: the model.
        batch_rows: number of rows from which on no further request joins a prediction.
        wait_s: time for which a prediction waits for further requests.
        refresh_s: time between two looks for new weights; 0 for never.
        on_batch: called with the number of rows of each prediction.

    Attributes:
        refreshed: number of times that new weights were taken over.
        refresh_error: why the newest look for new weights failed; empty if it did not.
    """

    def __init__(
        self,
        predictor: Predictor,
        batch_rows: int,
        wait_s: float,
        refresh_s: float,
        on_batch: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._predictor = predictor
        self._batch_rows, self._wait_s, self._refresh_s = batch_rows, wait_s, refresh_s
        self._on_batch = on_batch
        self._requests: Queue[_Request | None] = Queue()
        self._ended = Event()
        self._threads = [Thread(target=self._answer_all, name="exfm-predict", daemon=True)]
        if refresh_s:
            self._threads.append(Thread(target=self._refresh_all, name="exfm-refresh", daemon=True))
        self.refreshed, self.refresh_error = 0, ""

    @property
    def description(self) -> Description:
        """The model, and the snapshot that is served now."""
        return self._predictor.description

    @property
    def is_alive(self) -> bool:
        """Whether requests are answered."""
        return self._threads[0].is_alive()

    def start(self) -> None:
        """Begins to answer requests."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Answers the requests that wait, and ends."""
        self._ended.set()
        self._requests.put(None)
        for thread in self._threads:
            thread.join()

    def submit(self, rows: Sequence[Row], context: Row | None = None) -> Future[Answer]:
        """Asks for the predictions of rows; the future raises what ``Predictor.predict`` raises.

        Args:
            rows: mappings of columns to values.
            context: columns that all rows have in common; such a request is predicted alone.
        """
        answer: Future[Answer] = Future()
        self._requests.put(_Request(rows, answer, context))
        return answer

    def _answer_all(self) -> None:
        while (first := self._requests.get()) is not None:
            requests, ended = self._joined_by_others(first)
            plain = [request for request in requests if request.context is None]
            if plain:
                self._answer(plain)
            for request in requests:
                if request.context is not None:
                    self._answer_candidates(request, request.context)
            if ended:
                return

    def _joined_by_others(self, first: _Request) -> tuple[list[_Request], bool]:
        """Takes the requests that are predicted together with a request; tells too whether they are the last."""
        requests, rows, until_s = [first], len(first.rows), time.monotonic() + self._wait_s
        while rows < self._batch_rows:
            left_s = until_s - time.monotonic()
            try:
                further = self._requests.get(block=left_s > 0, timeout=max(left_s, 0) or None)
            except Empty:
                break
            if further is None:
                return requests, True
            requests.append(further)
            rows += len(further.rows)
        return requests, False

    def _answer(self, requests: Sequence[_Request]) -> None:
        model = self._predictor.model  # of one snapshot, for all rows
        rows: list[Row] = []
        for request in requests:
            rows += request.rows
        self._on_batch(len(rows))
        try:
            columns = model.columns(rows)
            predictions = model.run(model.convert(columns))
        except Exception as error:  # of a component too, whose type nobody knows
            if len(requests) == 1:
                requests[0].answer.set_exception(error)
            else:
                for request in requests:
                    self._answer([request])
            return
        end = 0
        for request in requests:
            start, end = end, end + len(request.rows)
            slices = {task: values[start:end] for task, values in predictions.items()}
            request.answer.set_result(Answer(columns.slice(start, end - start), model.description.snapshot, slices))

    def _answer_candidates(self, request: _Request, context: Row) -> None:
        model = self._predictor.model  # of one snapshot, for all candidates
        self._on_batch(len(request.rows))
        try:
            shared, columns = model.request_columns(context, request.rows)
            predictions = model.run_request(shared, columns)
        except Exception as error:  # of a component too, whose type nobody knows
            request.answer.set_exception(error)
            return
        request.answer.set_result(Answer(columns, model.description.snapshot, predictions, shared))

    def _refresh_all(self) -> None:
        while not self._ended.wait(self._refresh_s):
            try:
                if self._predictor.refresh():
                    self.refreshed += 1
                    logger.info("snapshot %d is served from now on", self.description.snapshot)
                self.refresh_error = ""
            except (ConfigError, RunError, OSError) as error:
                # Of an export that is just being written, or a store that is away: the next look may succeed.
                if str(error) != self.refresh_error:
                    logger.warning("snapshot %d is served on: %s", self.description.snapshot, error)
                self.refresh_error = str(error)
