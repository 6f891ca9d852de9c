"""Keeps secrets out of files and messages: values of environment variables, and credentials in URLs.

An experiment refers to an environment variable by ``${oc.env:NAME}``. Files of a run and messages contain the
reference; the value stays in memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
_SHORTEST_VALUE = 4
"""A shorter value is left in messages, because it would match inside unrelated words."""

_LONG = 8
"""A word of at least so many letters is replaced inside other words too."""

_values: dict[str, str] = {}
"""Maps each environment value that this process's experiments read to its reference."""

# Braces nest once: a default may itself be a reference, as in ${oc.env:A,${name}}.
_REFERENCE = re.compile(r"\$\{(?:[^{}]|\{[^{}]*\})*\}")
_DEFAULT = re.compile(r"(\$\{oc\.env:[^,{}]*),[^{}]*\}")
# The login ends at the last @ before the path, because a password in plain text may contain another @.
_LOGIN = re.compile(rf"(?P<scheme>[A-Za-z][\w.+-]*://)(?P<login>(?:(?:{_REFERENCE.pattern}|[^\s/?#'\"@])*@)+)")
# Azure names a container in front of the @: abfs://container@account.
_CONTAINER = re.compile(r"(?:abfs|wasb)s?://")
_WORDS = r"pass(?:word|wd|phrase)|pwd|secret|token|sas|credentials?|(?:api|access|account|private|secret)[_-]?key"
_QUERY = re.compile(
    rf"(?P<name>[?&;](?:[\w.-]*[_.-])?(?:{_WORDS}|key|auth|sig|signature|AWSAccessKeyId)=)(?P<value>[^\s&;#'\"]+)",
    re.IGNORECASE,
)
# Names of settings have dots and hyphens too: of Kafka's clients, ssl.key.pem is a private key, and two settings hold a
# login among others.
_SECRET_KEY = re.compile(
    rf"(?:.*[._-])?(?:{_WORDS}|connection[_-]?string|key\.pem|oauthbearer\.config|jaas\.config|authorization)",
    re.IGNORECASE,
)


def remember(value: str, reference: str) -> None:
    """Remembers the value of an environment variable, so that ``redact`` replaces it by the reference."""
    if len(value) >= _SHORTEST_VALUE:
        # A library may put a value into a URL, escaped, or take it out of a URL: messages can hold each form.
        for form in (quote(value, safe=""), unquote(value), value):
            _values[form] = reference


def redact(text: str) -> str:
    """Replaces remembered values by their references, and credentials in URLs by ``***``."""
    # The longest first, because a value may contain another value.
    for value in sorted(_values, key=len, reverse=True):
        pattern = re.escape(value)
        # A short word is replaced as a whole word only, because longer words may contain it.
        if value.isalpha() and len(value) < _LONG:
            pattern = rf"\b{pattern}\b"
        # A function as replacement, because backslashes in a string would be read as group references.
        text = re.sub(pattern, lambda _: _values[value], text)  # noqa: B023
    return without_credentials(text)


def without_credentials(text: str) -> str:
    """Replaces user and password of every URL, and the secrets in its query, by ``***``.

    A password that is a reference to an environment variable stays, because it reveals nothing.
    """
    if "://" not in text:
        return text
    text = _LOGIN.sub(_without_login, text)
    return _QUERY.sub(lambda match: f"{match['name']}{_hidden(match['value'])}", text)


def _without_login(match: re.Match[str]) -> str:
    """Replaces the login of a matched URL by ``***``, or by the reference that it consists of."""
    login = match["login"].removesuffix("@")
    user, colon, password = _split_login(login)
    if not colon and _CONTAINER.fullmatch(match["scheme"]):
        return match[0]
    if not colon:
        return f"{match['scheme']}{_hidden(user)}@"
    hidden = _hidden(password)
    if hidden != HIDDEN:
        hidden = f"{user}:{hidden}"
    return f"{match['scheme']}{hidden}@"


def _split_login(login: str) -> tuple[str, str, str]:
    """Splits a login at the colon between user and password; the last two are empty where there is no colon."""
    # References are blanked out at equal length, because ${oc.env:NAME} contains a colon too.
    position = _REFERENCE.sub(lambda match: "x" * len(match[0]), login).find(":")
    if position < 0:
        return login, "", ""
    return login[:position], ":", login[position + 1 :]


def _hidden(secret: str) -> str:
    """Returns a reference without its default in plain text, or ``***`` for any other secret."""
    if _REFERENCE.sub("", secret):
        return HIDDEN
    return _DEFAULT.sub(r"\1}", secret)


def concealed(tree: Any, key: str = "") -> Any:
    """Returns the tree without credentials in URLs, and without text under keys such as ``password``, ``secret``."""
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
    """Tells whether two values are equal apart from the login, because the data are the same for every login."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return bool(before == now)
    return _anonymous(before) == _anonymous(now)


def _anonymous(text: str) -> str:
    text = _LOGIN.sub(lambda match: f"{match['scheme']}{HIDDEN}@", text)
    return _QUERY.sub(lambda match: f"{match['name']}{HIDDEN}", text)
