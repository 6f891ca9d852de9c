"""Aliases move atomically, keep their history, and are found again whatever happens to the process that moves them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exfm.errors import ConfigError, RunError
from exfm.interfaces.data_source import Window
from exfm.storage import workspace
from exfm.storage.aliases import Aliases, check_alias
from exfm.storage.commits import Commit
from exfm.storage.snapshot_at import snapshot_at
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store
from tests.supervision.test_retiring import publish

MOVES = st.lists(st.one_of(st.integers(0, 4), st.none()), max_size=20)
"""Versions to promote; None for a rollback."""


@given(MOVES, st.sets(st.integers(0, 4)))
def test_an_alias_follows_its_promotions_and_rollbacks(moves: list[int | None], bad: set[int]) -> None:
    """Another formulation: a list of versions, whose end is cut off by a rollback."""
    url = f"memory://aliases-{abs(hash((tuple(moves), tuple(sorted(bad)))))}"
    aliases = Aliases(Workspace(url))
    aliases.workspace.remove_tree("aliases")
    expected: list[int] = []
    for version in moves:
        if version is not None:
            aliases.promote("vm", "production", version)
            if not expected or expected[-1] != version:
                expected.append(version)
            continue
        positions = [i for i, v in enumerate(expected[:-1]) if v != expected[-1] and v not in bad]
        if positions:
            assert aliases.rollback("vm", "production", lambda _, version: version not in bad) == (
                expected[-1],
                expected[positions[-1]],
            )
            expected = expected[: positions[-1] + 1]
        else:
            with pytest.raises(ConfigError):
                aliases.rollback("vm", "production", lambda _, version: version not in bad)
    again = Aliases(Workspace(url))
    assert again.targets("vm") == ({"production": expected} if expected else {})
    assert again.versions("vm") == set(expected)
    assert again.names("vm") == ({expected[-1]: ["production"]} if expected else {})


def test_moves_of_two_operators_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second operator moves the alias after the first has read the history, and before it writes."""
    first, second = Aliases(Workspace(str(tmp_path))), Aliases(Workspace(str(tmp_path)))
    for version in (1, 2, 3):
        first.promote("vm", "production", version)
    create = Workspace.create
    waiting = [True]

    def after_the_other(self: Workspace, relative: str, data: bytes) -> bool:
        if waiting and self is first.workspace:
            waiting.clear()
            second.promote("vm", "production", 9)
        return create(self, relative, data)

    monkeypatch.setattr(Workspace, "create", after_the_other)
    assert first.rollback("vm", "production", lambda *_: True) == (9, 3)  # decided again: the alias had moved
    waiting.append(True)
    first.promote("vm", "production", 5)
    assert Aliases(Workspace(str(tmp_path))).targets("vm") == {"production": [1, 2, 3, 9, 5]}
    kinds = [(move.version, move.kind) for move in second.moves("vm")]
    assert kinds[3:] == [(9, "promote"), (3, "rollback"), (9, "promote"), (5, "promote")]


def test_a_kill_before_the_move_is_complete_leaves_the_alias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    publish(store, 4)
    store.snapshots.aliases.promote("vm", "production", 2)

    def killed(target: str, data: bytes) -> None:
        # The process dies while it writes: its file has a hidden name, and half of its content.
        Path(target).with_name(".exfm.elsewhere.0123456789ab.0123456789ab.tmp").write_bytes(data[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(workspace, "prepared_file", killed)
        with pytest.raises(KeyboardInterrupt):
            store.snapshots.aliases.promote("vm", "production", 3)
    again = Store(str(tmp_path))
    again.sweep(["vm"])
    assert again.snapshots.aliases.targets("vm") == {"production": [2]}
    again.snapshots.aliases.promote("vm", "production", 3)
    assert again.snapshots.aliases.names("vm") == {3: ["production"]}


def test_a_rollback_skips_versions_that_nobody_should_serve(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    publish(store, 6, held=(2,))
    for version in (0, 1, 2, 3, 5):
        store.snapshots.aliases.promote("vm", "production", version)
    store.workspace.remove("snapshots/vm/000003")  # as if by hand
    assert store.snapshots.rollback("vm", "production") == (5, 1)
    assert store.snapshots.rollback("vm", "production") == (1, 0)
    with pytest.raises(ConfigError, match=r"'production' of 'vm' points at snapshot 0, and no good one .*before: none"):
        store.snapshots.rollback("vm", "production")
    with pytest.raises(ConfigError, match=r"has the alias 'prodution'\. Did you mean 'production'"):
        store.snapshots.rollback("vm", "prodution")


def test_a_damaged_move_is_named(tmp_path: Path) -> None:
    aliases = Aliases(Workspace(str(tmp_path)))
    aliases.promote("vm", "production", 1)
    aliases.promote("vm", "production", 2)
    file = tmp_path / "aliases" / "vm" / "000001.json"
    file.write_text(file.read_text().replace('"version": 2', '"version": 7'))
    with pytest.raises(RunError, match=r"aliases/vm/000001\.json: damaged: its content is not what was committed"):
        Aliases(Workspace(str(tmp_path))).targets("vm")
    file.unlink()
    assert Aliases(Workspace(str(tmp_path))).targets("vm") == {"production": [1]}


@pytest.mark.parametrize("alias", ["latest", "7", "2026-01-01", "a/b", "", "a b"])
def test_an_alias_is_a_name_and_nothing_else(alias: str) -> None:
    with pytest.raises(ConfigError, match="--alias: a letter, then letters"):
        check_alias(alias)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Versions 0 to 5, of windows that end at 100 us, 200 us ...; 5 is held, and 1 is retired."""
    store = Store(str(tmp_path))
    publish(store, 6, held=(5,), needed_us=0)
    store.snapshots.aliases.promote("vm", "production", 2)
    store.workspace.remove("snapshots/vm/000001")
    return store


@pytest.mark.parametrize(
    ("at", "version"),
    [
        ("latest", 4),
        ("3", 3),
        ("production", 2),
        ("5", 5),
        ("1970-01-01T00:00:00.000450", 3),
        ("1970-01-01T01:00:00.000400+01:00", 3),
        ("1970-01-01T00:00:00.000401Z", 3),
        ("2026-01-31", 4),
    ],
)
def test_what_names_a_snapshot(store: Store, at: str, version: int) -> None:
    assert snapshot_at(store.snapshots, "vm", at).version == version


@pytest.mark.parametrize(
    ("at", "words"),
    [
        ("1", r"no snapshot 1 of 'vm', or no longer; there are: 0, 2, 3, 4, 5"),
        ("77", r"no snapshot 77 of 'vm', or no longer; there are: 0, 2, 3, 4, 5"),
        (
            "1970-01-01T00:00:00.000250",
            r"at .* the snapshot of 'vm' was 1, which is not stored any more; there are: 0,",
        ),
        ("1969-01-01", r"no snapshot of 'vm' was published by 1969-01-01; there are: 0, 2"),
        (
            "prodution",
            r"no snapshot of 'vm' is called 'prodution'.*Did you mean 'production'.* Versions: 0, 2, 3, 4, 5\.",
        ),
    ],
)
def test_what_names_no_snapshot(store: Store, at: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        snapshot_at(store.snapshots, "vm", at)


def test_an_alias_whose_window_is_gone_says_so(store: Store) -> None:
    store.workspace.remove("snapshots/vm/000002")
    with pytest.raises(ConfigError, match=r"no snapshot 2 .* 'production' points at it: move the alias"):
        snapshot_at(store.snapshots, "vm", "production")


def test_a_held_snapshot_is_named_in_a_warning(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    snapshot_at(store.snapshots, "vm", "4")
    assert not caplog.text
    snapshot_at(store.snapshots, "vm", "5")
    assert "snapshot 5 of 'vm' is held: bad figures" in caplog.text


def test_there_may_be_no_snapshot_to_read(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ConfigError, match="there is no snapshot of 'vm'; `exfm run`"):
        snapshot_at(store.snapshots, "vm", "latest")
    publish(store, 2, held=(0, 1))
    with pytest.raises(ConfigError, match="every snapshot of 'vm' that is stored is held: 0, 1; `exfm snapshots"):
        snapshot_at(store.snapshots, "vm", "latest")
    # A window whose rows were all skipped has a manifest, and no snapshot.
    store.log.add("train", "vm", Commit(Window(2, 200, 300), {"learned": [], "held": {}}, {}, 1))
    with pytest.raises(ConfigError, match="no snapshot 2 of 'vm'"):
        snapshot_at(store.snapshots, "vm", "2")
