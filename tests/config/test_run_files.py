"""Folders of other runs, as the files of a run name them."""

from __future__ import annotations

import pytest

from exfm.config.run_files import home_url


@pytest.mark.parametrize(
    ("url", "run", "expected"),
    [
        ("runs/b", "../a", "runs/a"),
        ("s3://bucket/runs/b/", "../a", "s3://bucket/runs/a"),
        ("b", "../a", "a"),  # both in the working directory, and not at the root of the disk
        ("runs/b", "s3://bucket/a", "s3://bucket/a"),
    ],
)
def test_a_run_beside_another_is_found(url: str, run: str, expected: str) -> None:
    assert home_url(url, run) == expected
