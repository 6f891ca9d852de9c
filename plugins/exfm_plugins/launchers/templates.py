"""Renders the templates of launchers that write files."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import jinja2


def render(engine: str, template: str, **words: Any) -> str:
    """Renders a template of an engine. ``shell`` quotes a command line, ``text`` a string of YAML or Python."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(f"exfm_plugins.launchers.{engine}", "templates"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["shell"] = shlex.join
    # JSON's strings are strings of YAML, and of Python, whose escapes are the same.
    environment.filters["text"] = json.dumps
    return environment.get_template(f"{template}.j2").render(words)


def label(name: str, longest: int = 52) -> str:
    """Returns a name as DNS labels are written (RFC 1123): lower-case letters, digits and ``-``.

    Args:
        longest: 63 is the limit; 52 leaves room for the endings that engines add.
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:longest].strip("-")


def labels(names: list[str]) -> dict[str, str]:
    """Maps names to labels, and tells names apart whose labels would be equal."""
    taken: dict[str, str] = {}
    for name in names:
        chosen = stem = label(name)
        number = 2
        while chosen in taken.values():
            chosen = f"{stem[:48]}-{number}"
            number += 1
        taken[name] = chosen
    return taken
