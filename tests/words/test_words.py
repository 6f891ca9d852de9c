"""The word check counts names that are bound and words of prose, and nothing else."""

from __future__ import annotations

import pytest

from tests.words.counting import Counts, SourceText
from tests.words.rules import Rules, folder_of

RULES = """
names = ["found", "of"]
allowed = ["core/exfm/a.py: of"]
phrases = ["the rest"]
slack = 3
[per_10_000]
what = 30
phrases = 5
[ceilings]
"core/exfm" = { names = 2 }
"""
SOURCE = '''
"""Says what, and the rest of what."""
import os as found
def load(of, *, rest):  # what
    """Loads ``what`` it is told.

    Example::

        what = the rest

    In the end, what
    """
    self._found_BD = of.found(found=rest)
    return "what"  # type: ignore[what]
Field(description="Not what it was.", alias="what")
'''


def test_names_where_they_are_bound_and_words_where_people_read_them() -> None:
    hits = SourceText.from_python(SOURCE).hits({"found", "of"}, ["what"], ["the rest"])
    assert sorted((hit.kind, hit.text, hit.line) for hit in hits) == [
        ("names", "found", 3),
        ("names", "found", 13),
        ("names", "of", 4),
        ("phrases", "the rest", 2),
        ("what", "what", 2),
        ("what", "what", 2),
        ("what", "what", 4),
        ("what", "what", 5),
        ("what", "what", 15),
    ]


PAGE = """
# What it is

One table of [what](what.md#one) they `found`, and the rest.

```python
what = one
```

    what = one

| what | the rest |
"""


def test_a_page_is_prose_but_for_code_and_targets_of_links() -> None:
    hits = SourceText.from_markdown(PAGE).hits({"found"}, ["what", "one"], ["the rest"])
    assert sorted((hit.line, hit.kind) for hit in hits) == [
        (2, "what"),
        (4, "one"),
        (4, "phrases"),
        (4, "what"),
        (12, "phrases"),
        (12, "what"),
    ]


def test_figures_of_a_file() -> None:
    source = "x = [a for a in b if {c for c in a}]  # why\ny = 1 if x else 2\n"
    counts = SourceText.from_python(source).count([])
    assert (counts.lines, counts.words, counts.comments, counts.comprehensions, counts.conditionals) == (2, 1, 1, 2, 1)


@pytest.mark.parametrize(
    ("names", "prose", "problems"),
    [
        (2, 3, []),
        (3, 3, ["core/exfm: names: 3, at most 2"]),
        (0, 4, ["core/exfm: what: 4, at most 3"]),
    ],
)
def test_a_count_may_not_rise_above_its_ceiling_or_its_limit(names: int, prose: int, problems: list[str]) -> None:
    counts = Counts(words=1_000)
    counts.kinds.update(names=names, what=prose)
    said = [problem.split(" (")[0] for problem in Rules.read(RULES).problems("core/exfm", counts)]
    assert said == problems


@pytest.mark.parametrize(("ceiling", "falls"), [(5, False), (6, True)])
def test_a_ceiling_falls_with_the_count(ceiling: int, falls: bool) -> None:
    rules = Rules.read(RULES.replace("names = 2", f"names = {ceiling}"))
    counts = Counts(words=1_000)
    counts.kinds.update(names=2)
    assert [*rules.problems("core/exfm", counts)] == (
        [f"core/exfm: names: 2, and a ceiling of {ceiling} (python -m tests.words --write)"] if falls else []
    )
    again = Rules.read(RULES.partition("[ceilings]")[0] + "[ceilings]\n" + rules.ceilings_of({"core/exfm": counts}))
    assert again.ceilings == {"core/exfm": {"names": 2}} and not [*again.problems("core/exfm", counts)]


def test_a_key_of_the_user_is_allowed_in_its_file_alone() -> None:
    rules = Rules.read(RULES)
    assert not rules.hits("core/exfm/a.py", SourceText.from_python("of = 1\n"))
    assert rules.hits("core/exfm/b.py", SourceText.from_python("of = 1\n"))


def test_a_file_is_counted_in_the_folder_that_has_a_ceiling() -> None:
    assert folder_of("core/exfm/training/loop.py") == "core/exfm/training"
    assert folder_of("core/exfm/errors.py") == "core/exfm"
    assert folder_of("tests/plugins/deep/er/x.py") == "tests/plugins"
    assert folder_of("docs/index.md") == "docs" and folder_of("README.md") == "."
