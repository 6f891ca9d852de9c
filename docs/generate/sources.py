"""Links that leave docs/ lead to pages of the site too: a source file, a folder, or a README of the repository.

So the site needs no address of a repository, and its links are checked like all others when it is built. In the
Markdown, where editors and code hosts follow them, links stay relative to the file.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".json": "json", ".sh": "bash"}
HEAD = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds a page for every file that a page links to, and for those that a README among them links to."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    seen = {_source_of(uri) for uri in waiting}
    while waiting:
        uri = waiting.pop()
        found = files.get_file_from_path(uri)
        assert found is not None
        for path in _linked(found.content_string, _source_of(uri)):
            if path not in seen and not path.startswith("docs/") and (ROOT / path).exists():
                seen.add(path)
                waiting.append(_page_of(path))
                files.append(File.generated(config, _page_of(path), content=_content(path)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points links at pages of the site."""
    uri = page.file.src_uri
    here = posixpath.dirname(_source_of(uri))

    def point(link: re.Match[str]) -> str:
        target = _page_of(_resolve(here, link[1]))
        if files.get_file_from_path(target) is None:
            return link[1]  # mkdocs says that it is missing
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    parts = FENCED.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(point, part) for part in parts)


def _linked(markdown: str, source: str) -> Iterator[str]:
    for link in LINK.findall(FENCED.sub("", markdown)):
        yield _resolve(posixpath.dirname(source), link)


def _resolve(folder: str, link: str) -> str:
    """The path in the repository that a link means; a link with a leading slash is relative to the repository."""
    return posixpath.normpath(link[1:] if link.startswith("/") else posixpath.join(folder, link))


def _source_of(uri: str) -> str:
    """The file of the repository that a page shows; of a generated page, where it would lie."""
    if not uri.startswith("source/"):
        return f"docs/{uri}"
    path = uri.removeprefix("source/")
    return path if (ROOT / path).exists() else path.removesuffix(".md").removesuffix("/index")


def _page_of(path: str) -> str:
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}" if path.endswith(".md") else f"source/{path}.md"


def _content(path: str) -> str:
    file = ROOT / path
    if file.is_dir():
        names = sorted(item.name for item in file.iterdir() if not item.name.startswith((".", "__")))
        return f"{HEAD}# {path}\n\n" + "".join(f"- `{name}`\n" for name in names)
    text = file.read_text(encoding="utf-8")
    if path.endswith(".md"):
        return HEAD + text
    return f"{HEAD}# {path}\n\n~~~~~~ {LANGUAGES.get(file.suffix, 'text')}\n{text}\n~~~~~~\n"
