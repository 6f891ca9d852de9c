"""Parses the released files into columns: ratings sorted by time, movies and users indexed by their ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv

from exfm_plugins.sources.movielens.files import ReleaseFiles

# In the order of 100k's columns. A genre that is not listed, and "(no genres listed)", is unknown.
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western", "IMAX",
)  # fmt: skip
# In the order of 100k's u.occupation.
OCCUPATIONS = (
    "administrator", "artist", "doctor", "educator", "engineer", "entertainment", "executive", "healthcare",
    "homemaker", "lawyer", "librarian", "marketing", "none", "other", "programmer", "retired", "salesman", "scientist",
    "student", "technician", "writer",
)  # fmt: skip
AGE_BRACKETS = (1, 18, 25, 35, 45, 50, 56)
FIRST_YEAR, YEARS = 1870, 180  # the oldest film of the latest release is of 1874
ZIP_AREAS = 1001  # three digits, and a row for addresses outside the United States

# 1M separates by "::". The unit separator replaces it, because no title contains that control character.
_SEPARATORS = {".dat": "\x1f", ".data": "\t", ".item": "|", ".user": "|"}
_INT, _TEXT = pa.int32(), pa.string()
_RATINGS = {"user": _INT, "movie": _INT, "rating": pa.float32(), "second": pa.int64()}
_CSV_NAMES = {"user": "userId", "movie": "movieId", "second": "timestamp"}


@dataclass(frozen=True)
class Ratings:
    """Holds all ratings, sorted by (time, user, movie); N rows.

    Attributes:
        user_N: user ids.
        movie_N: movie ids.
        half_stars_N: the rating times two, 1 to 10.
        second_N: seconds since 1970, UTC.
    """

    user_N: NDArray[np.int32]
    movie_N: NDArray[np.int32]
    half_stars_N: NDArray[np.int8]
    second_N: NDArray[np.int64]


@dataclass(frozen=True)
class Attributes:
    """Holds the attributes of users or movies: row i is id i, and is null if that id does not exist.

    Attributes:
        table: the columns, I rows, where I - 1 is the largest id.
        exists_I: whether the id exists.
    """

    table: pa.RecordBatch
    exists_I: NDArray[np.bool_]

    def missing_ids(self, ids_N: NDArray[np.int32]) -> NDArray[np.int32]:
        """Returns the ids that do not exist."""
        within = (ids_N >= 0) & (ids_N < self.exists_I.size)
        # Ids outside the table look up row 0 instead, because an index must be valid even where it does not count.
        return ids_N[~(within & self.exists_I[np.where(within, ids_N, 0)])]

    def select(self, ids_B: NDArray[np.int32]) -> dict[str, pa.Array]:
        """Returns the columns of B ids."""
        rows = self.table.take(pa.array(ids_B))
        return dict(zip(rows.schema.names, rows.columns, strict=True))


def read_ratings(files: ReleaseFiles) -> Ratings:
    """Reads and sorts the ratings.

    Raises:
        ValueError: the file is empty, a line cannot be read, or a rating is not 0.5 to 5 in halves.
    """
    name = files.release.ratings
    table = _read(files, name, _RATINGS)
    user, movie, rating, second = (table[column].to_numpy() for column in _RATINGS)
    halves = rating * 2
    wrong = np.flatnonzero((halves != np.round(halves)) | (halves < 1) | (halves > 10))
    if wrong.size:
        raise ValueError(
            f"movielens: {files.label(name)}: rating {rating[wrong[0]]} in row {wrong[0]}; expected 0.5 to 5 in halves"
        )
    if not user.size:
        raise ValueError(f"movielens: {files.label(name)} holds no ratings")
    order = np.lexsort((movie, user, second))
    return Ratings(user[order], movie[order], halves[order].astype(np.int8), second[order])


def read_movies(files: ReleaseFiles) -> Attributes:
    """Reads the attributes of the movies.

    Columns: ``movie_year`` (years since FIRST_YEAR, null if it is not in the file), ``genres`` (a list of indices into
    GENRES), ``first_genre``.
    """
    name = files.release.movies
    if name == "u.item":
        columns = {"movie": _INT, "title": _TEXT, "released": _TEXT, "video": _TEXT, "url": _TEXT}
        table = _read(files, name, columns | {f"flag{i}": pa.int8() for i in range(19)})
        flags = np.stack([table[f"flag{i}"].to_numpy() for i in range(19)], axis=1) != 0
        year = pc.struct_field(pc.extract_regex(table["released"], r"(?P<year>\d{4})\s*$"), "year")
        lengths, values = flags.sum(axis=1), np.nonzero(flags)[1]
    else:
        table = _read(files, name, {"movie": _INT, "title": _TEXT, "genres": _TEXT})
        year = pc.struct_field(pc.extract_regex(table["title"], r"\((?P<year>\d{4})\)\s*$"), "year")
        names = pc.split_pattern(table["genres"].combine_chunks(), "|")
        flat = names.flatten()
        # 1M says "Children's", latest says "Children".
        flat = pc.if_else(pc.equal(flat, "Children"), "Children's", flat)
        lengths = pc.list_value_length(names).to_numpy(zero_copy_only=False)
        values = pc.fill_null(pc.index_in(flat, pa.array(GENRES)), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    # A further value, because the offset of a last movie without genres is the end of the values.
    first = np.where(lengths > 0, np.append(values, 0)[offsets[:-1]], 0)
    since = pc.subtract(pc.cast(year, _INT), pa.scalar(FIRST_YEAR, _INT))
    since = pc.if_else(pc.and_(pc.greater_equal(since, 0), pc.less(since, YEARS)), since, None)
    columns = {
        "movie_year": since.combine_chunks().cast(_INT),
        "genres": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values, _INT)),
        "first_genre": pa.array(first, _INT),
    }
    return _by_id(files.label(name), table["movie"], columns)


def read_users(files: ReleaseFiles) -> Attributes:
    """Reads the attributes of the users.

    Columns: ``gender`` (0 F, 1 M), ``age`` (index into AGE_BRACKETS), ``occupation`` (the release's code; 100k's names
    are indices into OCCUPATIONS), ``zip_area`` (1 + the first three digits; 0 outside the United States).
    """
    name = files.release.users
    if name == "u.user":
        columns = {"user": _INT, "age": _INT, "gender": _TEXT, "occupation": _TEXT, "zip": _TEXT}
        table = _read(files, name, columns)
        occupation = pc.index_in(table["occupation"], pa.array(OCCUPATIONS))
    else:
        columns = {"user": _INT, "gender": _TEXT, "age": _INT, "occupation": _INT, "zip": _TEXT}
        table = _read(files, name, columns)
        occupation = table["occupation"]
    area = pc.struct_field(pc.extract_regex(table["zip"], r"^(?P<area>\d{3})\d{2}"), "area")
    bracket = np.searchsorted(AGE_BRACKETS, table["age"].to_numpy(), side="right") - 1
    attributes = {
        "gender": pc.index_in(table["gender"], pa.array(["F", "M"])).combine_chunks(),
        "age": pa.array(np.maximum(bracket, 0), _INT),
        "occupation": occupation.combine_chunks(),
        "zip_area": pc.fill_null(pc.add(pc.cast(area, _INT), pa.scalar(1, _INT)), 0).combine_chunks(),
    }
    return _by_id(files.label(name), table["user"], attributes)


def _by_id(label: str, ids: pa.ChunkedArray, columns: Mapping[str, pa.Array]) -> Attributes:
    """Reorders rows so that row i has id i."""
    id_R = ids.to_numpy()
    if not id_R.size or id_R.min() < 0 or np.unique(id_R).size != id_R.size:
        raise ValueError(f"movielens: {label}: expected ids that are unique and not negative")
    row_I = np.full(id_R.max() + 1, -1)
    row_I[id_R] = np.arange(id_R.size)
    exists_I = row_I >= 0
    return Attributes(pa.RecordBatch.from_pydict(dict(columns)).take(pa.array(row_I, mask=~exists_I)), exists_I)


def _read(files: ReleaseFiles, name: str, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """Reads a delimited file: ``.csv`` by the names in its header, other files, which are latin-1, by position."""
    types: dict[str, Any] = dict(columns)
    reading = csv.ReadOptions(column_names=list(columns), encoding="latin1", use_threads=False)
    separator = _SEPARATORS.get(PurePosixPath(name).suffix, ",")
    parsing = csv.ParseOptions(delimiter=separator, quote_char=False)
    if name.endswith(".csv"):
        types = {_CSV_NAMES.get(column, column): kind for column, kind in columns.items()}
        reading, parsing = csv.ReadOptions(use_threads=False), csv.ParseOptions()
    converting = csv.ConvertOptions(column_types=types, include_columns=list(types))
    with files.open(name) as file:
        source: Any = file
        if name.endswith(".dat"):  # Arrow's reader takes separators of a single character
            source = pa.BufferReader(file.read().replace(b"::", separator.encode()))
        try:
            table = csv.read_csv(source, reading, parsing, converting)
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(f"movielens: {files.label(name)} cannot be read: {error}") from error
    empty = [column for column in table.column_names if table[column].null_count]
    if empty:
        raise ValueError(f"movielens: {files.label(name)}: empty values in column {empty[0]!r}")
    return table.rename_columns(list(columns))
