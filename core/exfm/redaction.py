"""Keeps secrets out of whatever is written or printed: values of environment variables, and credentials in URLs.

An experiment refers to an environment variable by ``${oc.env:NAME}``. Files of a run and messages have the reference;
the value is in memory only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
_SHORTEST_VALUE = 4
"""A shorter value is left in messages: it would be found inside of words that have nothing to do with it."""

_LONG = 8

_values: dict[str, str] = {}
"""The values of this process's experiments, and the reference to each."""

_REFERENCE = re.compile(r"\$\{(?:[^{}]|\{[^{}]*\})*\}")
_DEFAULT = re.compile(r"(\$\{oc\.env:[^,{}]*),[^{}]*\}")
_LOGIN = re.compile(rf"(?P<scheme>[A-Za-z][\w.+-]*://)(?P<login>(?:(?:{_REFERENCE.pattern}|[^\s/?#'\"@])*@)+)")
_CONTAINER = re.compile(r"(?:abfs|wasb)s?://")
_WORDS = r"pass(?:word|wd|phrase)|pwd|secret|token|sas|credentials?|(?:api|access|account|private|secret)_?key"
_QUERY = re.compile(
    rf"(?P<name>[?&;](?:[\w.-]*[_.-])?(?:{_WORDS}|key|auth|sig|signature|AWSAccessKeyId)=)(?P<value>[^\s&;#'\"]+)",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(rf"(?:.*[_-])?(?:{_WORDS}|connection_string)", re.IGNORECASE)


def remember(value: str, reference: str) -> None:
    """Remembers the value of an environment variable, so that ``redact`` puts the reference in its place."""
    if len(value) >= _SHORTEST_VALUE:
        for form in (quote(value, safe=""), unquote(value), value):
            _values[form] = reference


def redact(text: str) -> str:
    """Replaces remembered values by their references, and credentials in URLs by ``***``."""
    for value in sorted(_values, key=len, reverse=True):
        # A short word is looked for as a word: others may have it inside.
        pattern = rf"\b{re.escape(value)}\b" if value.isalpha() and len(value) < _LONG else re.escape(value)
        text = re.sub(pattern, lambda _: _values[value], text)  # noqa: B023
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """Replaces user and password of every URL, and what a query passes as a secret, by ``***``.

    A password that is a reference to an environment variable gives nothing away, and stays.
    """
    if "://" not in text:
        return text
    text = _LOGIN.sub(_without_login, text)
    return _QUERY.sub(lambda match: f"{match['name']}{_hidden(match['value'])}", text)


def _without_login(match: re.Match[str]) -> str:
    login = match["login"].removesuffix("@")
    user, colon, password = _split(login)
    if not colon and _CONTAINER.fullmatch(match["scheme"]):
        return match[0]  # Azure's way to name a container
    hidden = _hidden(password if colon else user)
    return f"{match['scheme']}{HIDDEN if hidden == HIDDEN else user + colon + hidden if colon else hidden}@"


def _split(login: str) -> tuple[str, str, str]:
    """User, colon and password; a colon inside a reference is not the one between them."""
    place = _REFERENCE.sub(lambda match: "x" * len(match[0]), login).find(":")
    return (login, "", "") if place < 0 else (login[:place], ":", login[place + 1 :])


def _hidden(secret: str) -> str:
    """A reference as it is, without a default that the file gives in plain text; ``***`` for anything else."""
    return HIDDEN if _REFERENCE.sub("", secret) else _DEFAULT.sub(r"\1}", secret)


def concealed(tree: Any, key: str = "") -> Any:
    """The tree without credentials in its URLs, and without text under keys such as ``password`` and ``secret``."""
    if isinstance(tree, Mapping):
        return {name: concealed(value, str(name)) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [concealed(value, key) for value in tree]
    if not isinstance(tree, str):
        return tree
    if tree and _SECRET_KEY.fullmatch(key):
        return _hidden(tree)
    return without_credentials(tree)


def same_but_for_credentials(before: Any, now: Any) -> bool:
    """Whether two values differ in nothing but who logs in: that is no other data."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return bool(before == now)
    return _anonymous(before) == _anonymous(now)


def _anonymous(text: str) -> str:
    text = _LOGIN.sub(lambda match: f"{match['scheme']}{HIDDEN}@", text)
    return _QUERY.sub(lambda match: f"{match['name']}{HIDDEN}", text)
