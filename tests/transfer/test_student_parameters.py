"""A student's teacher vectors: stored once for all that read them, and refused where a snapshot has other columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import exfm
from exfm.transfer.row_offsets import OffsetSum
from tests.training.logs import load, make_log
from tests.training.test_teacher_inputs import config, trainer_of

COMPACT = {"name": "compact_features", "teacher": "fm"}


def test_strategies_and_inputs_of_the_same_column_share_a_table(tmp_path: Path) -> None:
    transfer = [COMPACT, COMPACT | {"entities": ["user"], "scale": 0.5}]
    trainer = trainer_of(load(tmp_path, config(tmp_path, "run", make_log(60), transfer=transfer)), "vm")
    tables = {fed.columns: fed.table for fed in trainer.transfer.parameters.fed_tables()}
    assert tables.keys() == {("state_user",), ("state_item",)}
    assert trainer.model.inputs is not None
    (looked_up,) = trainer.model.inputs.stored().values()
    assert looked_up is tables["state_user",]
    offset = trainer.model.featurizer.offsets["user"]
    assert isinstance(offset, OffsetSum)
    terms: list[Any] = list(offset.offsets)
    assert [term.vectors for term in terms] == 2 * [looked_up]
    kept = [key for key in trainer.training_state() if key.endswith("vectors_RK")]
    assert kept == ["vectors.fm.state_item.table_item.vectors_RK"]  # the other table is in the served weights
    looked_up.vectors_RK[3] = torch.arange(4.0)
    projected = [term.projection(torch.arange(4.0)) for term in terms]
    assert torch.equal(offset(torch.tensor([3])).squeeze(0), projected[0] + projected[1])


def test_a_snapshot_of_another_version_says_what_to_do(tmp_path: Path) -> None:
    trainer = trainer_of(load(tmp_path, config(tmp_path, "run", make_log(60), transfer=[COMPACT])), "vm")
    state = trainer.training_state()
    old = {key.replace("vectors.fm.state_item", "transfer.0.rows"): value for key, value in state.items()}
    with pytest.raises(exfm.RunError, match=r"models\.vm\.transfer: .* another version of exfm.*--fresh"):
        trainer.load_training_state(old)


def test_a_layer_that_is_called_like_a_table_is_not_one(tmp_path: Path) -> None:
    """The maps of compact features have 8 outputs and a table's name, and the table has 64 rows."""
    trainer = trainer_of(load(tmp_path, config(tmp_path, "run", make_log(60), transfer=[COMPACT])), "vm")
    state = trainer.training_state()
    assert state["transfer.0.maps.table_user.weight"].shape == (8, 4)
    trainer.load_training_state(state)


def test_a_part_that_two_transfers_copy_is_refused(tmp_path: Path) -> None:
    sharing = {"name": "parameter_sharing", "teacher": "fm", "parts": {"table/user": "copied"}}
    experiment = load(tmp_path, config(tmp_path, "run", make_log(60), transfer=[sharing, sharing]))
    with pytest.raises(exfm.ConfigError, match=r"models\.vm\.transfer\.1: table/user is copied by two transfers"):
        trainer_of(experiment, "vm")
