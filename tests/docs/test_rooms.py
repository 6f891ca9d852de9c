"""Every folder of core is on the page of the architecture, and has a layer for its imports."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = {path.parent.name for path in (ROOT / "core" / "exfm").glob("*/__init__.py")}


def test_every_room_is_on_the_page() -> None:
    page = (ROOT / "docs" / "core" / "architecture.md").read_text(encoding="utf-8")
    assert [room for room in sorted(ROOMS) if f"`{room}/`" not in page] == []


def test_every_room_has_a_layer() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    rooms = next(contract for contract in contracts if contract["type"] == "layers" and "containers" not in contract)
    named = {name.strip().removeprefix("exfm.") for layer in rooms["layers"] for name in layer.split("|")}
    assert named == ROOMS
