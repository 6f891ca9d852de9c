"""Tables that grow in the schema: rows that are kept, new rows, and growth that is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import exfm
from exfm.modeling.growth import Growth
from exfm.scheduling.identity import open_run
from exfm.sources.ids import hash_rows
from exfm.supervision.store import Store
from tests.training.logs import experiment_dict, load, make_log, write_log

STD = 0.05
WEIGHT = "featurizer.pooled.bags.embedding_bags.table_user.weight"
SQUARES = "featurizer.pooled.bags.table_user.weight.table_user.weight.momentum_1"
STATES = "inputs.tables.state_fm/user.vectors_RK"
ADDED = "vectors.fm.state_user.table_user.vectors_RK"


def growth(rows: int, ids: str, seed: int = 0) -> Growth:
    feature = {"name": "user", "kind": "categorical", "rows": rows, "ids": ids}
    schema = exfm.schema.FeatureSchema.model_validate({"features": [feature], "labels": [{"name": "click"}]})
    return Growth(schema, STD, seed)


@given(rows=st.integers(1, 50), factor=st.integers(1, 5), ids=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_every_hashed_id_reads_what_it_read_before(rows: int, factor: int, ids: list[int]) -> None:
    table, squares = torch.randn(rows, 4), torch.rand(rows)
    grown = growth(rows * factor, "hash").grow_whole({WEIGHT: table, SQUARES: squares})
    keys = np.array(ids, np.int64).view(np.uint64)
    before, now = (torch.from_numpy(hash_rows(keys, count)) for count in (rows, rows * factor))
    assert torch.equal(grown[WEIGHT][now], table[before])
    assert torch.equal(grown[SQUARES][now], squares[before])


def test_new_rows_of_ids_that_are_rows_are_a_new_tables() -> None:
    others = {name: torch.ones(4, 3) for name in ("heads.task_click.0.weight", "0.rows.table_user.map.weight")}
    vectors = {STATES: torch.ones(30, 4), ADDED: torch.ones(30, 3)}
    state = {WEIGHT: torch.randn(30, 16), SQUARES: torch.rand(30), **vectors, **others}
    grown = growth(5_000, "row").grow_whole(state)
    new = grown[WEIGHT][30:]
    assert torch.equal(grown[WEIGHT][:30], state[WEIGHT])
    assert new.std().item() == pytest.approx(STD, rel=0.01)
    assert new.abs().max() <= STD * 3**0.5 + 1e-6
    assert torch.equal(grown[SQUARES], torch.cat([state[SQUARES], torch.zeros(4_970)]))
    assert torch.equal(grown[STATES].sum(dim=1), torch.tensor([4.0] * 30 + [0.0] * 4_970))
    assert torch.equal(grown[ADDED].sum(dim=1), torch.tensor([3.0] * 30 + [0.0] * 4_970))
    assert all(torch.equal(grown[name], value) for name, value in others.items())
    assert torch.equal(growth(5_000, "row").grow_whole(state)[WEIGHT], grown[WEIGHT]), "every process draws the same"
    assert not torch.equal(growth(5_000, "row", seed=1).grow_whole(state)[WEIGHT], grown[WEIGHT])


@pytest.mark.parametrize(
    ("rows", "ids", "message"),
    [
        (29, "row", "table 'user': it had 30 rows and now has 29; a table may grow"),
        (100, "hash", r"it had 30 rows and now has 100; .* whole factor, .* Nearest: 90, 120"),
    ],
)
def test_a_table_that_would_lose_what_it_knows_is_refused(rows: int, ids: str, message: str) -> None:
    with pytest.raises(exfm.ConfigError, match=message):
        growth(rows, ids).grow({WEIGHT: torch.zeros(30, 16)})


def test_a_run_may_go_on_with_more_rows_and_not_with_fewer(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log", make_log(rows=60))
    config = experiment_dict(log, str(tmp_path / "run"))
    del config["models"]["vm"]
    exfm.run(load(tmp_path, config))  # a run's first commit binds its folder
    store = Store(str(tmp_path / "run"))
    sequence = "stream.source.features.3.fields.0.rows"
    open_run(load(tmp_path, config, "stream.source.features.1.rows=128", f"{sequence}=128"), store)
    for overrides, message in (
        (["stream.source.features.0.rows=32"], r"stream.features.user.rows: it had 64 rows and now has 32"),
        (["stream.source.features.0.rows=96"], r"stream.features.user.rows: .* Nearest: 64, 128"),
        (["stream.source.features.0.ids=row"], r"stream.features.user.ids was 'hash' and is now 'row'"),
    ):
        grown = load(tmp_path, config, "stream.source.features.1.rows=128", f"{sequence}=128", *overrides)
        with pytest.raises(exfm.ConfigError, match=message):
            open_run(grown, store)
