"""The site builds strictly, needs no network to be read, its links lead somewhere, and every component has its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

from exfm.cli.main import _COMMANDS
from exfm.registry.discovery import default_registry
from exfm.registry.hooks import INTERFACES

# Building the site takes long, and most mistakes of the documentation are found by the other tests.
pytestmark = pytest.mark.soak

pytest.importorskip("material", reason="mkdocs-material is not installed: pip install 'exfm[docs]'")

ROOT = Path(__file__).parents[2]
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}


class Links(HTMLParser):
    """What a page links to, what it loads, and the anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {key: value or "" for key, value in attrs}
        self.anchors |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" and found.get("rel") != "canonical":
            self.loads.append(found.get("href", ""))
        if tag in LOADED and LOADED[tag] in found:
            self.loads.append(found[LOADED[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {page: Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html") if page.name != "404.html"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Links]) -> None:
    loads = {target for page in pages.values() for target in page.loads}
    assert loads and [target for target in loads if "//" in target] == []
    styles = "".join(file.read_text(encoding="utf-8") for file in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", styles) == []


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Links]) -> None:
    assert sorted(_broken(site, pages)) == []


def _broken(site: Path, pages: dict[Path, Links]) -> Iterator[str]:
    for page, found in pages.items():
        for link in found.links:
            target, anchor = urldefrag(link)
            if "://" in target:
                continue
            file = (page.parent / unquote(target)).resolve() if target else page
            if file not in pages or (anchor and unquote(anchor) not in pages[file].anchors):
                yield f"{page.relative_to(site)} -> {link}"


def test_every_component_has_its_page_with_every_field(site: Path) -> None:
    registry = default_registry()
    for kind in INTERFACES:
        for name in registry.names(kind):
            text = (site / "components" / kind / f"{name}.html").read_text(encoding="utf-8")
            for field in registry.resolve(kind, name).Config.model_fields:
                assert f"<code>{field}</code>" in text, f"{kind}.{name}.{field}"


def test_every_command_has_its_section(pages: dict[Path, Links], site: Path) -> None:
    assert [name for name in _COMMANDS if name not in pages[site / "commands.html"].anchors] == []


def test_the_three_readers_reach_every_page_from_the_navigation(site: Path, pages: dict[Path, Links]) -> None:
    start = pages[site / "index.html"]
    reached = {(site / urldefrag(link)[0]).resolve() for link in start.links if "://" not in link}
    own = {page for page in pages if page.relative_to(site).parts[0] != "source"}
    assert own - reached == set()
