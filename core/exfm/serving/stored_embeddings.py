"""Looks up teachers' embeddings of a stream's rows in the supervision that a run has committed.

Legend: B examples, K width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from exfm.data.batch import Batch
from exfm.scheduling.identity import read_grid
from exfm.supervision.joiner import embedding_input
from exfm.supervision.store import Store
from exfm.supervision.streaming import OpenSupervision


class StoredEmbeddings:
    """Adds the embeddings that a model reads as input to batches, which come in order of time.

    Args:
        store: the run's folder.
        widths: width of the embedding, by teacher.

    Attributes:
        missing: number of rows without an embedding so far, by teacher.
    """

    def __init__(self, store: Store, widths: Mapping[str, int]) -> None:
        self.missing = dict.fromkeys(widths, 0)
        self._store, self._widths = store, widths
        self._grid = read_grid(store)
        self._open: dict[str, tuple[int, OpenSupervision | None]] = {}

    def add(self, batch: Batch) -> Batch:
        """Returns the batch with the embeddings of its examples; NaN where the run has none."""
        embeddings = {teacher: self._read(teacher, batch) for teacher in self._widths}
        return replace(batch, embeddings=embeddings)

    def close(self) -> None:
        """Closes the files."""
        for _, stream in self._open.values():
            if stream is not None:
                stream.close()
        self._open.clear()

    def _read(self, teacher: str, batch: Batch) -> Tensor:
        result_BK = torch.full((batch.size, self._widths[teacher]), torch.nan)
        if self._grid is not None:
            # `//` of tensors rounds down, as that of integers, also before the first window.
            window_B = (batch.event_time_us - self._grid.origin_us) // self._grid.length_us
            for window in np.unique(window_B.numpy()).tolist():
                stream = self._stream(teacher, window)
                if stream is not None:
                    rows = (window_B == window).nonzero().squeeze(1)
                    times = batch.event_time_us[rows]
                    stored = stream.between(int(times[0]), int(times[-1]))
                    result_BK[rows] = embedding_input(stored.join(batch.example_id[rows], times).supervision)
        self.missing[teacher] += int(result_BK.isnan().any(dim=1).sum())
        return result_BK

    def _stream(self, teacher: str, window: int) -> OpenSupervision | None:
        """Returns the supervision of a window, and closes that of the window before; None without supervision."""
        opened, stream = self._open.get(teacher, (None, None))
        if opened == window:
            return stream
        if stream is not None:
            stream.close()
        assert self._grid is not None
        stream = None
        if window >= 0:
            stream = self._store.supervision(teacher, self._grid.window(window))
        self._open[teacher] = (window, stream)
        return stream
