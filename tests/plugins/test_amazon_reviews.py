"""`amazon_reviews`: the formats of three releases, histories of strictly earlier days, items drawn for the label 0."""

from __future__ import annotations

import gzip
import json
from datetime import UTC
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import exfm_plugins.sources
from exfm.testing import DataSourceTests
from exfm_plugins.sources.amazon_reviews.source import AmazonReviews
from tests.plugins.sources import everything, run_example

DAY = 86_400
Review = tuple[str, str, int, int]
# (user, item, stars, day): not in time order, and with ties.
REVIEWS: list[Review] = [
    ("A2", "B1", 5, 16100), ("A1", "B2", 2, 16000), ("A1", "B3", 4, 16100), ("A1", "B1", 5, 16100),
    ("A1", "B2", 3, 16105),
]  # fmt: skip
META_2014 = (
    "{'asin': 'B1', 'categories': [['Electronics', 'GPS'], ['Electronics', 'Car', \"Kid's\"]], 'price': 2.5}\n"
    "{'asin': 'B2', 'title': 'x', 'categories': [['Electronics']], 'related': {'also_bought': ['B1', 'Z9']}}\n"
    "{'asin': 'Z9', 'categories': broken, but nobody has reviewed it}\n"
)


def line_2014(user: str, item: str, stars: int, day: int) -> str:
    return json.dumps(
        {"reviewerID": user, "asin": item, "reviewerName": 'B. "X"', "helpful": [0, 0], "reviewText": "Good\n, bad",
         "overall": float(stars), "summary": "é", "unixReviewTime": day * DAY, "reviewTime": "06 2, 2013"}
    )  # fmt: skip


def line_2018(user: str, item: str, stars: int, day: int) -> str:
    return json.dumps(
        {"overall": float(stars), "vote": "67", "verified": True, "reviewTime": "09 18, 1999", "reviewerID": user,
         "asin": item, "style": {"Format:": " Hardcover"}, "reviewText": "x", "unixReviewTime": day * DAY}
    )  # fmt: skip


def line_2023(user: str, item: str, stars: int, day: int) -> str:
    return json.dumps(
        {"rating": float(stars), "title": "x", "text": "y", "images": [], "asin": f"{item}-red", "parent_asin": item,
         "user_id": user, "timestamp": day * DAY * 1000, "helpful_vote": 0, "verified_purchase": True}
    )  # fmt: skip


def put(path: Path, lines: list[str]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def released(folder: Path, reviews: list[Review] = REVIEWS) -> dict[str, str]:
    """Both files of 2014, where they have been written."""
    (folder / "meta_Electronics.json").write_text(META_2014)
    path = put(folder / "reviews_Electronics_5.json.gz", [line_2014(*review) for review in reviews])
    return {"path": path, "meta": str(folder / "meta_Electronics.json")}


def source(**config: Any) -> AmazonReviews:
    return AmazonReviews(AmazonReviews.Config(**config))


def day_of(row: dict[str, Any]) -> int:
    return int(row["event_time"].replace(tzinfo=UTC).timestamp()) // DAY


class TestAmazonReviews(DataSourceTests):
    component = AmazonReviews
    plugin = exfm_plugins.sources
    configs = (
        {"path": "{folder}/reviews_Electronics_5.json.gz", "meta": "{folder}/meta_Electronics.json"},
        {"path": "{folder}/reviews_Electronics_5.json.gz", "task": "liked", "history_length": 2, "user_rows": 9},
    )

    def write(self, folder: Path) -> None:
        released(folder, [(f"A{i % 7}", f"B{i * i % 23}", i % 5 + 1, 16000 + i * 37 % 50) for i in range(80)])


def test_liked_row_by_row(tmp_path: Path) -> None:
    rows = everything(source(task="liked", **released(tmp_path)))
    assert [(row["user"], row["item"], day_of(row)) for row in rows] == [
        ("A1", "B2", 16000), ("A2", "B1", 16100), ("A1", "B3", 16100), ("A1", "B1", 16100), ("A1", "B2", 16105)
    ]  # fmt: skip
    assert [row["liked"] for row in rows] == [0, 1, 1, 1, 0]
    assert [row["category"] for row in rows] == ["Electronics", "Kid's", None, "Kid's", "Electronics"]
    assert [row["history_item"] for row in rows] == [[], [], ["B2"], ["B2"], ["B2", "B3", "B1"]], "not of the same day"
    assert rows[4]["history_category"] == ["Electronics", "", "Kid's"]
    assert rows[4]["history_rating"] == [2, 4, 5]
    assert rows[4]["history_age"] == [105 * DAY, 5 * DAY, 5 * DAY]


def test_the_releases_agree(tmp_path: Path) -> None:
    expected = everything(source(task="liked", **released(tmp_path)))
    for name, line in (("Electronics_5.json", line_2018), ("Electronics.jsonl.gz", line_2023)):
        path = put(tmp_path / name, [line(*review) for review in REVIEWS])
        meta = [{"asin": "B1", "category": ["Electronics", "Kid's"]}, {"asin": "B2", "category": ["Electronics"]}]
        if "jsonl" in name:
            meta = [{"parent_asin": one["asin"], "categories": one["category"], "store": "S"} for one in meta]
        metadata = put(tmp_path / f"meta_{name}", [json.dumps(one) for one in meta])
        assert everything(source(task="liked", path=path, meta=metadata)) == expected, name


def test_without_metadata_there_are_no_categories(tmp_path: Path) -> None:
    of = source(path=released(tmp_path)["path"])
    assert "category" not in everything(of)[0]
    assert "category" not in of.schema().tables()


def test_any_file_system(tmp_path: Path) -> None:
    config = released(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/az/{Path(file).name}": Path(file).read_bytes() for file in config.values()})
    try:
        remote = source(path="memory://az/reviews_Electronics_5.json.gz", meta="memory://az/meta_Electronics.json")
        assert everything(remote) == everything(source(**config))
    finally:
        memory.rm("/", recursive=True)


def test_the_example_runs(tmp_path: Path) -> None:
    config = released(tmp_path)
    results = run_example("amazon_reviews", tmp_path, "stream.window=80d", **config, user_rows=50, item_rows=50)
    assert results["models"]["fm"]["examples"] == len(everything(source(**config)))


reviews = st.lists(
    st.tuples(
        st.sampled_from(["A1", "A2", "A3"]),
        st.sampled_from([f"B{number}" for number in range(9)]),
        st.integers(1, 5),
        st.integers(16000, 16006),
    ),
    min_size=1,
    max_size=30,
)


@given(given_reviews=reviews, seed=st.integers(0, 3), most=st.integers(1, 4))
def test_drawn_items_and_histories(tmp_path: Path, given_reviews: list[Review], seed: int, most: int) -> None:
    """Against plain Python: each review's own row, and beside it an item that is known and not the user's."""
    config = released(tmp_path, given_reviews)
    rows = everything(source(path=config["path"], seed=seed, history_length=most))
    ordered = sorted(given_reviews, key=lambda review: review[3])
    assert [(row["user"], row["item"], day_of(row)) for row in rows if row["reviewed"]] == [
        (user, item, day) for user, item, _, day in ordered
    ]
    for before, row in pairwise(rows):
        if not row["reviewed"]:
            assert before["reviewed"]
            assert {**row, "item": 0, "reviewed": 0, "example_id": 0} == {
                **before, "item": 0, "reviewed": 0, "example_id": 0
            }  # fmt: skip
    for row in rows:
        user, day = row["user"], day_of(row)
        mine = {item for who, item, _, _ in ordered if who == user}
        known = {item for _, item, _, when in ordered if when <= day}
        past = [item for who, item, _, when in ordered if who == user and when < day]
        assert row["history_item"] == past[-most:]
        assert row["item"] in (mine & known if row["reviewed"] else known - mine)
    drawn = sum(not row["reviewed"] for row in rows)
    choices = [
        {item for _, item, _, when in ordered if when <= day} - {item for who, item, _, _ in ordered if who == user}
        for user, _, _, day in ordered
    ]
    assert drawn == sum(bool(choice) for choice in choices)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("{'reviewerID': 1}", ["row 5"]),
        ('{"reviewerID": "A", "asin": "B", "unixReviewTime": 5}', ["row 5", "1 to 5", "overall"]),
        ('{"reviewerID": "A", "asin": "B", "overall": 6.0, "unixReviewTime": 5}', ["row 5", "1 to 5"]),
        ('{"reviewerID": "A", "overall": 5.0, "unixReviewTime": 5}', ["row 5", "asin"]),
        ('{"reviewerID": "A", "asin": "B", "overall": 5.0}', ["row 5", "unixReviewTime"]),
        ('{"reviewerID": "A", "asin": "B", "overall": 5.0, "unixReviewTime": "May"}', ["row 5", "string"]),
        ("", ["row 5"]),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, bad: str, words: list[str]) -> None:
    path = put(tmp_path / "reviews.json", [*(line_2014(*review) for review in REVIEWS), bad])
    with pytest.raises(ValueError) as error:
        everything(source(path=path))
    assert all(word in str(error.value) for word in ["amazon_reviews", "reviews.json", *words]), str(error.value)


def test_wrong_files_are_explained(tmp_path: Path) -> None:
    config = released(tmp_path)
    with pytest.raises(ValueError, match=r"there is no file '.*nowhere'"):
        source(path=str(tmp_path / "nowhere")).time_range()
    with pytest.raises(ValueError, match=r"there is no file '.*nowhere'"):
        everything(source(path=config["path"], meta=str(tmp_path / "nowhere")))
    with pytest.raises(ValueError, match="holds no reviews"):
        source(path=put(tmp_path / "empty.json", [])).time_range()
    meta = put(tmp_path / "meta.json", ["{'asin': 'B1', 'categories': open('/etc/passwd')}"])
    with pytest.raises(ValueError, match=r"meta.json, row 0: it is neither JSON nor a literal"):
        everything(source(path=config["path"], meta=meta))
