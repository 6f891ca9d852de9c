"""The config that a run keeps is read as OmegaConf, which writes it, would read it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from exfm.config.resolved import parse_resolved

NUMBERS = "1e3 1E5 1e-05 1_000 1. .5 +.5 -1.5e+3 0x1f 0o17 0b1 017 1:30 1:30.5 .inf -.inf nan .NaN 1__0 1_.5 _1 1e+999"
WORDS = "null ~ yes No on OFF true False y n = << ??? 2026-01-31 2026-01-31T00:00:00Z 12:30 !tag &a *a % @ ` - ? :"
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="$"), max_size=12),
    st.from_regex(r"\A[-+.0-9_eE:xob]{1,8}\Z"),
    st.sampled_from([*NUMBERS.split(), *WORDS.split(), "", " ", "a: b", "- a", "# a", "a\nb\n", "é\u2028\x85\x07"]),
    st.sampled_from(["${oc.env:TOKEN}", "a ${oc.env:TOKEN,1e3} b", r"\${a}", r"\\${oc.env:TOKEN}", "$", "$5", "{a}"]),
)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXTS)
KEYS = st.one_of(TEXTS, st.integers(), st.booleans())
TREES = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4))
)


def written(config: dict[str, Any]) -> str:
    text: str = OmegaConf.to_yaml(OmegaConf.create(config))
    return text


@given(st.dictionaries(TEXTS, TREES, max_size=4))
@example({word: [word, {word: word}] for word in (*NUMBERS.split(), *WORDS.split())})
def test_it_is_read_as_omegaconf_reads_it(config: dict[str, Any]) -> None:
    """By repr, which tells 1 from True and 1.0, and calls every NaN alike."""
    text = written(config)
    expected = OmegaConf.to_container(OmegaConf.create(text, max_yaml_expanded_nodes=None))
    assert repr(parse_resolved(text)) == repr(expected) == repr(config)


@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
def test_a_loader_without_c_reads_the_same(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exfm.config.resolved._LOADER", loader)
    config = {word: [word, 1e-05, 1e20, 3, True, None] for word in (*NUMBERS.split(), *WORDS.split())}
    assert parse_resolved(written(config)) == config
