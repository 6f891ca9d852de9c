"""`movielens`: every released format, in a folder, a zip or at a URL; histories see strictly earlier seconds."""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Iterator, Mapping
from datetime import UTC
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import exfm
import exfm_plugins.sources
from exfm.sources import unpacking
from exfm.testing import DataSourceTests
from exfm_plugins.sources.movielens.source import MovieLens
from exfm_plugins.sources.movielens.tables import AGE_BRACKETS, FIRST_YEAR, GENRES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SECOND = 1_000_000

# (user, movie, rating, second): not in time order, and with ties.
RATINGS = [(1, 10, 5, 300), (2, 10, 3, 100), (1, 12, 4, 100), (1, 10, 2, 100), (2, 12, 4, 900), (1, 17, 1, 301)]
SORTED = sorted(RATINGS, key=lambda row: (row[3], row[0], row[1]))


def files_1m(ratings: list[tuple[int, int, int, int]] = RATINGS) -> dict[str, bytes]:
    return {
        "ratings.dat": "".join(f"{u}::{m}::{r}::{s}\n" for u, m, r, s in ratings).encode(),
        "users.dat": b"1::F::1::10::48067\n2::M::56::16::98107-2117\n",
        "movies.dat": '10::Misérables, Les (1995)::Drama|Musical\n12::Star: A "Film" (1977)::Sci-Fi\n'
        "17::No year::Children's|Western\n".encode("latin-1"),
    }


def files_100k() -> dict[str, bytes]:
    def item(movie: int, released: str, *genres: str) -> str:
        flags = "|".join("1" if genre in genres else "0" for genre in GENRES[:19])
        return f"{movie}|Café ({movie})|{released}||http://us.imdb.com/M?{movie}|{flags}\n"

    movies = item(10, "01-Jan-1995", "Drama", "Musical") + item(12, "25-May-1977", "Sci-Fi") + item(17, "", "unknown")
    return {
        "u.data": "".join(f"{u}\t{m}\t{r}\t{s}\n" for u, m, r, s in RATINGS).encode(),
        "u.user": b"1|24|M|technician|85711\n2|53|F|other|V0R2M\n",
        "u.item": movies.encode("latin-1"),
        "u1.base": b"never read",
    }


def files_latest() -> dict[str, bytes]:
    return {
        "ratings.csv": b"userId,movieId,rating,timestamp\n"
        + "".join(f"{u},{m},{r - 0.5},{s}\n" for u, m, r, s in RATINGS).encode(),
        "movies.csv": (
            'movieId,title,genres\n10,"Misérables, Les (1995)",Drama|IMAX\n12,"A ""B""",(no genres listed)\n'
            "17,C (1977) ,Children|Western\n"
        ).encode(),
        "tags.csv": b"never,read\n",
    }


def put(folder: Path, files: Mapping[str, bytes]) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def zipped(files: Mapping[str, bytes], inside: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(f"{inside}README", "text")
        for name, content in files.items():
            archive.writestr(f"{inside}{name}", content)
    return buffer.getvalue()


def source(path: str, **config: Any) -> MovieLens:
    return MovieLens(MovieLens.Config(path=path, **config))


class TestMovieLens(DataSourceTests):
    component = MovieLens
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}/1m"},
        {"path": "{folder}/100k", "task": "like", "history_length": 2},
        {"path": "{folder}/latest.zip", "user_rows": 100},
    )

    def write(self, folder: Path) -> None:
        put(folder / "1m", files_1m(RATINGS * 5))
        put(folder / "100k", files_100k())
        (folder / "latest.zip").write_bytes(zipped(files_latest(), "ml-latest/"))


def rows_of(batches: Iterator[pa.RecordBatch]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for batch in batches:
        batch.validate(full=True)
        rows += batch.to_pylist()
    return rows


def everything(of: MovieLens) -> list[dict[str, Any]]:
    time = of.time_range()
    return rows_of(of.read(exfm.sources.Window(0, time.start_us, time.end_us)))


def told(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    return [(row["user_id"], row["movie_id"], second_of(row)) for row in rows]


def second_of(row: dict[str, Any]) -> int:
    return int(row["event_time"].replace(tzinfo=UTC).timestamp())


def test_1m_row_by_row(tmp_path: Path) -> None:
    of = source(put(tmp_path, files_1m()))
    rows = everything(of)
    assert told(rows) == [(u, m, s) for u, m, _, s in SORTED]
    assert [row["example_id"] for row in rows] == list(range(6))
    assert [row["like"] for row in rows] == [int(r >= 4) for _, _, r, _ in SORTED]
    assert [row["love"] for row in rows] == [int(r == 5) for _, _, r, _ in SORTED]
    assert of.time_range() == exfm.sources.TimeRange(100 * SECOND, 900 * SECOND + 1)
    first, last = rows[0], rows[-1]
    assert (first["gender"], AGE_BRACKETS[first["age"]], first["occupation"], first["zip_area"]) == (0, 1, 10, 481)
    assert (last["gender"], AGE_BRACKETS[last["age"]], last["occupation"], last["zip_area"]) == (1, 56, 16, 982)
    assert (first["movie_year"], [GENRES[i] for i in first["genres"]]) == (1995 - FIRST_YEAR, ["Drama", "Musical"])
    assert {row["movie_id"]: row["movie_year"] for row in rows} == {10: 125, 12: 107, 17: None}
    assert [GENRES[i] for i in rows[-2]["genres"]] == ["Children's", "Western"]
    # User 1's ratings at second 100 know nothing of each other; the one at 300 knows both, oldest first.
    assert [row["history_movie"] for row in rows] == [[], [], [], [10, 12], [10, 12, 10], [10]]
    assert rows[4]["history_rating"] == [4, 8, 10]
    assert rows[4]["history_age"] == [201, 201, 1]
    assert [GENRES[i] for i in rows[4]["history_genre"]] == ["Drama", "Sci-Fi", "Drama"]


def test_schema_fits_the_rows(tmp_path: Path) -> None:
    for name, files in {"1m": files_1m(), "100k": files_100k(), "latest": files_latest()}.items():
        of = source(put(tmp_path / name, files), task="love", history_length=2)
        schema, rows = of.schema(), everything(of)
        assert schema.tasks == ("love",)
        assert schema.group == "user_id"
        assert ("gender" in {feature.name for feature in schema.features}) == (name != "latest")
        for feature in schema.features:
            if isinstance(feature, exfm.schema.SequenceFeature):
                assert feature.max_length == 2
                assert max(len(row["history_movie"]) for row in rows) == 2
            elif isinstance(feature, exfm.schema.DenseFeature):
                assert all(np.isfinite(row[feature.source_column]) for row in rows)
            elif isinstance(feature, exfm.schema.CategoricalFeature | exfm.schema.MultiValuedFeature):
                if feature.ids != "row":
                    continue
                ids = [row[feature.source_column] for row in rows]
                flat = [
                    i for value in ids if value is not None for i in (value if isinstance(value, list) else [value])
                ]
                assert all(0 <= i < feature.rows for i in flat), feature.name
        assert schema.tables()["movie_id"] == 18
        assert "like" not in rows[0]


def test_100k(tmp_path: Path) -> None:
    rows = everything(source(put(tmp_path, files_100k())))
    assert told(rows) == [(u, m, s) for u, m, _, s in SORTED]
    first, last = rows[0], rows[-1]
    assert (first["gender"], AGE_BRACKETS[first["age"]], first["occupation"], first["zip_area"]) == (1, 18, 19, 858)
    assert (last["gender"], AGE_BRACKETS[last["age"]], last["occupation"], last["zip_area"]) == (0, 50, 13, 0)
    assert {row["movie_id"]: row["movie_year"] for row in rows} == {10: 125, 12: 107, 17: None}
    assert {row["movie_id"]: row["genres"] for row in rows} == {
        10: [GENRES.index("Drama"), GENRES.index("Musical")], 12: [GENRES.index("Sci-Fi")], 17: [0]
    }  # fmt: skip


def test_latest(tmp_path: Path) -> None:
    of = source(put(tmp_path, files_latest()), user_rows=1000)
    rows = everything(of)
    assert told(rows) == [(u, m, s) for u, m, _, s in SORTED]
    assert [row["love"] for row in rows] == [0] * 6, "4.5 is not 5"
    assert [row["like"] for row in rows] == [int(r - 0.5 >= 4) for _, _, r, _ in SORTED]
    assert rows[4]["history_rating"] == [3, 7, 9]
    assert {row["movie_id"]: row["movie_year"] for row in rows} == {10: 125, 12: None, 17: 107}
    assert {row["movie_id"]: [GENRES[i] for i in row["genres"]] for row in rows} == {
        10: ["Drama", "IMAX"], 12: ["unknown"], 17: ["Children's", "Western"]
    }  # fmt: skip
    assert of.schema().tables()["user_id"] == 1000


def test_same_rows_wherever_the_files_are(tmp_path: Path) -> None:
    files = files_1m()
    plain = everything(source(put(tmp_path / "plain", files)))
    packed = {"ratings.dat.gz": gzip.compress(files["ratings.dat"])} | {
        n: files[n] for n in ("users.dat", "movies.dat")
    }
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/ml/{name}": content for name, content in files.items()})
    memory.pipe("/archive.zip", zipped(packed, "ml-1m/"))
    (tmp_path / "ml-1m.zip").write_bytes(zipped(files, "ml-1m/"))
    (tmp_path / "flat.zip").write_bytes(zipped(files, ""))
    urls = [put(tmp_path / "gz", packed), f"file://{tmp_path}/plain", "memory://ml", "memory://archive.zip",
            str(tmp_path / "ml-1m.zip"), str(tmp_path / "flat.zip")]  # fmt: skip
    try:
        for url in urls:
            assert everything(source(url)) == plain, url
    finally:
        memory.rm("/", recursive=True)


def test_batches_say_where_they_come_from(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(zipped(files_100k(), "ml-100k/"))
    of = source(str(tmp_path / "x.zip"))
    [batch] = of.read(exfm.sources.Window(0, 300 * SECOND, 301 * SECOND))
    assert exfm.sources.Origin.from_batch(batch) == exfm.sources.Origin(
        f"{tmp_path}/x.zip::ml-100k/u.data (sorted by time)", 3
    )


def brute_force(rows: list[tuple[int, int, int, int]], most: int) -> list[dict[str, Any]]:
    """The same rows in plain Python, each looking through all others."""
    seen: list[dict[str, Any]] = []
    ordered = sorted(rows, key=lambda row: (row[3], row[0], row[1]))
    for user, movie, _, second in ordered:
        past = [row for row in ordered if row[0] == user and row[3] < second]
        seen.append(
            {
                "history_movie": [row[1] for row in past][-most:],
                "history_rating": [2 * row[2] for row in past][-most:],
                "history_age": [second - row[3] for row in past][-most:],
                "user_ratings": len(past),
                "movie_ratings": sum(row[1] == movie and row[3] < second for row in ordered),
                "user_idle": second - past[-1][3] if past else 0,
                "user_age": second - past[0][3] if past else 0,
            }
        )
    return seen


events = st.lists(
    st.tuples(st.integers(1, 2), st.sampled_from([10, 12, 17]), st.integers(1, 5), st.integers(0, 12)),
    min_size=1,
    max_size=40,
    unique_by=lambda row: (row[0], row[1], row[3]),
)


@given(rows=events, most=st.integers(1, 6))
def test_history_is_strictly_earlier(tmp_path: Path, rows: list[tuple[int, int, int, int]], most: int) -> None:
    given_rows = everything(source(put(tmp_path, files_1m(rows)), history_length=most))
    expected = brute_force(rows, most)
    assert [{name: row[name] for name in expected[0]} for row in given_rows] == expected


@given(rows=events, second=st.integers(0, 12), stars=st.integers(1, 5))
@example(rows=[(1, 10, 2, 2), (2, 10, 1, 1), (2, 10, 2, 0), (2, 12, 5, 0)], second=1, stars=1)  # by rounding alone
def test_nothing_of_the_same_second_or_later_shows(
    tmp_path: Path, rows: list[tuple[int, int, int, int]], second: int, stars: int
) -> None:
    """Changing every rating from some second on changes no feature of the rows up to and including that second."""
    changed = [(u, m, stars if s >= second else r, s) for u, m, r, s in rows]
    before, after = (everything(source(put(tmp_path, files_1m(version)))) for version in (rows, changed))
    for one, other in zip(before, after, strict=True):
        if second_of(one) <= second:
            assert {k: v for k, v in one.items() if k not in ("like", "love")} == {
                k: v for k, v in other.items() if k not in ("like", "love")
            }


@given(rows=events)
def test_scores_by_their_definition(tmp_path: Path, rows: list[tuple[int, int, int, int]]) -> None:
    ordered = sorted(rows, key=lambda row: (row[3], row[0], row[1]))
    past = [[j for j, other in enumerate(ordered) if other[3] < row[3]] for row in ordered]
    base = [(3.5 + sum(ordered[j][2] for j in js)) / (1 + len(js)) for js in past]

    def score(i: int, key: int, surprise: list[float]) -> float:
        mine = [surprise[j] for j in past[i] if ordered[j][key] == ordered[i][key]]
        return sum(mine) / (len(mine) + 5)

    relative = [row[2] - base[i] for i, row in enumerate(ordered)]
    movie = [score(i, 1, relative) for i in range(len(ordered))]
    surprise = [relative[i] - movie[i] for i in range(len(ordered))]
    got = everything(source(put(tmp_path, files_1m(rows))))
    assert [row["movie_score"] for row in got] == pytest.approx(movie, abs=1e-5)
    assert [row["user_score"] for row in got] == pytest.approx(
        [score(i, 0, surprise) for i in range(len(ordered))], abs=1e-5
    )


@given(rows=events, length_us=st.integers(1, 20 * SECOND), shards=st.integers(1, 4))
def test_windows_shards_and_resuming(
    tmp_path: Path, rows: list[tuple[int, int, int, int]], length_us: int, shards: int
) -> None:
    of = source(put(tmp_path, files_1m(rows)))
    time, whole = of.time_range(), everything(of)
    # A few thousand windows at most: an hour-long stream cut to microseconds would say no more.
    length_us = max(length_us, (time.end_us - time.start_us) // 50 + 1)
    pieces: list[dict[str, Any]] = []
    for index, begin in enumerate(range(time.start_us, time.end_us, length_us)):
        window = exfm.sources.Window(index, begin, begin + length_us)
        piece = rows_of(of.read(window))
        pieces += piece
        for shard in range(shards):
            mine = rows_of(of.read(window, exfm.sources.Shard(shard, shards)))
            assert mine == piece[shard::shards]
    assert pieces == whole


def broken(change: str) -> dict[str, bytes]:
    files = files_1m()
    if change.startswith("no "):
        del files[change.removeprefix("no ")]
    elif change == "empty":
        files["ratings.dat"] = b""
    elif change == "word":
        files["ratings.dat"] += b"1::10::five::7\n"
    elif change == "columns":
        files["users.dat"] = b"1::F::1\n"
    elif change == "stars":
        files["ratings.dat"] += b"1::10::6::7\n"
    elif change == "movie":
        files["ratings.dat"] += b"1::11::5::7\n"
    elif change == "user":
        files["ratings.dat"] += b"3::10::5::7\n"
    elif change == "twice":
        files["movies.dat"] *= 2
    elif change == "gap":
        files["ratings.dat"] += b"1::10::::7\n"
    return files


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("no users.dat", ["1M", "lacks users.dat", "found movies.dat, ratings.dat"]),
        (
            "no ratings.dat",
            ["no MovieLens release", "ratings.dat", "u.data", "ratings.csv", "found movies.dat, users.dat"],
        ),
        ("empty", ["ratings.dat"]),
        ("word", ["ratings.dat", "five"]),
        ("columns", ["users.dat", "5 columns"]),
        ("stars", ["ratings.dat", "6.0", "0.5 to 5"]),
        ("movie", ["ratings.dat", "11", "movies.dat"]),
        ("user", ["ratings.dat", "3", "users.dat"]),
        ("twice", ["movies.dat", "unique"]),
        ("gap", ["ratings.dat", "rating"]),
    ],
)
def test_damaged_releases_are_explained(tmp_path: Path, change: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        everything(source(put(tmp_path / "ml", broken(change))))
    assert all(word in str(error.value) for word in ["movielens", *words]), str(error.value)


def test_wrong_paths_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file or folder '.*nowhere'"):
        source(str(tmp_path / "nowhere")).schema()
    (tmp_path / "text").write_text("not a zip")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        source(str(tmp_path / "text")).schema()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found nothing"):
        source(str(tmp_path / "empty")).schema()
    with pytest.raises(ValueError, match="several MovieLens releases"):
        source(put(tmp_path / "both", files_1m() | files_100k())).schema()
    headless = files_latest() | {"movies.csv": b"id,title,genres\n1,A,Drama\n"}
    with pytest.raises(ValueError, match=r"movies\.csv cannot be read.*movieId"):
        source(put(tmp_path / "headless", headless)).schema()


def test_schema_does_not_read_the_ratings(tmp_path: Path) -> None:
    source(put(tmp_path, files_1m() | {"ratings.dat": b"nonsense"})).schema()


@pytest.mark.parametrize(
    ("folder", "rows", "like"), [("movielens-1m-half", 487_650, 0.572), ("movielens-latest-small", 100_836, 0.482)]
)
def test_real_data(folder: str, rows: int, like: float) -> None:
    if not (DATA / folder).is_dir():
        pytest.skip(f"needs {folder} in {DATA}")
    of = source(str(DATA / folder), task="like")
    time = of.time_range()
    tables, labels, last = of.schema().tables(), [], None
    for batch in of.read(exfm.sources.Window(0, time.start_us, time.end_us)):
        labels.append(batch["like"].to_numpy())
        seconds = batch["event_time"].cast(pa.int64()).to_numpy()
        assert (np.diff(seconds) >= 0).all()
        assert last is None or seconds[0] >= last
        last = seconds[-1]
        assert batch["movie_id"].to_numpy().max() < tables["movie_id"]
        age = batch["history_age"].flatten().to_numpy()
        assert age.size == 0 or age.min() >= 1
    label = np.concatenate(labels)
    assert label.size == rows
    assert label.mean() == pytest.approx(like, abs=5e-4)


@pytest.mark.parametrize("packing", ["zip", "gz"])
def test_what_unpacks_to_far_too_much_is_refused(tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of two megabytes can hold a gigabyte of one line: it is refused before it is read."""
    monkeypatch.setattr(unpacking, "_AT_LEAST_BYTES", 1 << 16)
    files = dict(files_latest())
    files["ratings.csv"] += files["ratings.csv"].splitlines(keepends=True)[-1] * 200_000
    if packing == "zip":
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(f"ml-latest/{name}", content)
        path = tmp_path / "ml.zip"
        path.write_bytes(buffer.getvalue())
    else:
        path = tmp_path / "ml"
        path.mkdir()
        for name, content in files.items():
            (path / f"{name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=r"movielens: .*ratings\.csv.* unpacks to more than 50 times its size"):
        source(str(path)).time_range()
