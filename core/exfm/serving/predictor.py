"""Loads an export and predicts rows with it, which needs torch and pyarrow, but neither torchrec nor FBGEMM."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
from torch import Tensor

from exfm.errors import ConfigError, RunError
from exfm.serving.description import (
    COMPILED_FILE,
    COMPILED_REQUEST_FILE,
    PROGRAM_FILE,
    REQUEST_FILE,
    Description,
)
from exfm.serving.folder import file_record, read_description
from exfm.serving.loaded_model import Context, LoadedModel, Rows
from exfm.serving.programs import Code, load_code
from exfm.serving.weights import read_weights, request_weights
from exfm.storage.hashing import FileRecord
from exfm.storage.workspace import Workspace


class ExportReader:
    """Reads an export from its folder, and again when it has been written anew.

    Args:
        url: the folder, any fsspec URL.
        compiled: whether to run the compiled program; by default where the export has one.
    """

    def __init__(self, url: str, compiled: bool | None) -> None:
        self._workspace, self._compiled = Workspace(url), compiled
        self._code: dict[str, tuple[FileRecord, Code]] = {}

    def read(self, before: Description | None = None) -> LoadedModel | None:
        """Reads the export; returns None if it has not changed.

        Raises:
            ConfigError: there is no export, or it has no compiled program.
            RunError: a file is corrupt, has entries that exfm does not write, or was compiled for another torch
                version.
        """
        description = read_description(self._workspace)
        if description == before:
            return None
        compiled = COMPILED_FILE in description.files if self._compiled is None else self._compiled
        code = self._load_code(description, COMPILED_FILE if compiled else PROGRAM_FILE)
        request_code = None
        if description.request_inputs:
            request_code = self._load_code(description, COMPILED_REQUEST_FILE if compiled else REQUEST_FILE)
        weights = read_weights(self._workspace, file_record(description, description.weights_file))
        try:
            request = None if request_code is None else request_code.join(request_weights(weights))
            return LoadedModel(description, code.join(weights), request)
        except KeyError as error:
            where = f"{self._workspace.url}/{description.weights_file}"
            raise RunError(f"{where}: it lacks {error}, which the program needs; export again") from error

    def _load_code(self, description: Description, name: str) -> Code:
        """Loads the code of a program, unless it is the code that was loaded before."""
        if name not in description.files:
            has = ", ".join(description.files)
            raise ConfigError(f"{self._workspace.url}: the export has no {name}; it has {has}")
        record = file_record(description, name)
        if name not in self._code or self._code[name][0] != record:
            self._code[name] = record, load_code(self._workspace, description, name)
        return self._code[name][1]


class Predictor:
    """Predicts with an exported model. It may be called from several threads.

    Args:
        model: the model.
        reader: reads newer snapshots of it; without one ``refresh`` is refused.
    """

    def __init__(self, model: LoadedModel, reader: ExportReader | None = None) -> None:
        self._model, self._reader = model, reader
        self._refreshing = Lock()

    @property
    def model(self) -> LoadedModel:
        """The snapshot that predicts now. It does not change when another takes over."""
        return self._model

    @property
    def description(self) -> Description:
        """The features, columns and tensors of the model, and its snapshot."""
        return self._model.description

    def refresh(self) -> bool:
        """Changes over to the snapshot that is in the export's folder now.

        Requests that are running end with the snapshot that they began with, and no request waits. After
        `exfm export --weights-only` it takes milliseconds, and the weights are mapped into memory, not copied. After an
        error the model goes on with its snapshot.

        Returns:
            Whether the folder had another export than before.

        Raises:
            ConfigError: the model was not loaded from a folder, or the folder has no export any more.
            RunError: as for ``load``; also while another process is writing an export with other programs.
        """
        if self._reader is None:
            raise ConfigError("refresh: the model was not loaded from a folder")
        with self._refreshing:
            newer = self._reader.read(before=self._model.description)
            if newer is not None:
                self._model = newer
        return newer is not None

    def predict(self, rows: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts each task for each row, (B,) float32 by task: a probability, or an expected value.

        Of a multiclass label it predicts a probability per class, (B, C). ``description.outputs`` says which it is.

        Rows are hashed, transformed and truncated as the stream's rows are in training.

        Args:
            rows: a record batch with the columns of ``description.columns`` in any order, which may have others; or a
                mapping per row, with a key per column. The embedding of a teacher that has none of a row is null.

        Raises:
            ConfigError: a column is missing or of another type, or a value is outside the feature's range.
        """
        model = self._model  # of one snapshot, whatever `refresh` does meanwhile
        return model.run(model.tensors(rows))

    def predict_request(self, context: Context, candidates: Rows) -> dict[str, npt.NDArray[np.float32]]:
        """Predicts each task for each candidate of a request, as ``predict`` does for rows that repeat the context.

        The context is read once. With the program that `exfm export --requests` writes, its ids are looked up once, and
        its histories are encoded once where the encoder does not compare them with the candidate.

        Args:
            context: the columns that all candidates have in common: a mapping, or a record batch of a row.
            candidates: the other columns: a record batch, or a mapping per candidate.

        Raises:
            ConfigError: as for ``predict``; also where a column that the model reads is in both.
        """
        return self._model.predict_request(context, candidates)

    def tensors(self, rows: Rows) -> tuple[Tensor, ...]:
        """Converts rows to the program's arguments.

        Raises:
            ConfigError: as for ``predict``.
        """
        return self._model.tensors(rows)

    def run(self, tensors: Sequence[Tensor]) -> dict[str, npt.NDArray[np.float32]]:
        """Runs the program, and returns the prediction of each task, (B,) or (B, C) by task."""
        return self._model.run(tensors)


def load(url: str, *, compiled: bool | None = None) -> Predictor:
    """Loads an export that ``exfm export`` wrote.

    The files hold code, and are checked only against the checksums in inputs.json: load exports that you trust. No
    file is unpickled: a program that holds a pickle is refused.

    Args:
        url: the folder, any fsspec URL.
        compiled: whether to run the compiled program; by default where the export has one.

    Raises:
        ConfigError: there is no export, or it has no compiled program.
        RunError: a file is corrupt, has entries that exfm does not write, or was compiled for another torch version.
    """
    reader = ExportReader(url, compiled)
    model = reader.read()
    assert model is not None
    return Predictor(model, reader)
