"""Checks the status of a run by rules, and posts the alerts."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

from exfm.errors import ConfigError, RunError, suggestion
from exfm.redaction import redact, remember
from exfm.watching.alert_rules import Rule, Webhook


@dataclass(frozen=True)
class Alert:
    """Says that a rule fires.

    Attributes:
        rule: the name of the rule.
        about: the task, teacher or job that it concerns; empty if none.
        text: describes it for people.
    """

    rule: str
    kind: str
    model: str
    about: str
    value: float | str | None
    limit: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.model}: {self.text} ({self.limit})"


@dataclass(frozen=True)
class Checked:
    """Holds the outcome of a check.

    Attributes:
        alerts: the rules that fire, by model.
        looked: how many values rules have looked at.
        missing: the rules and models without a value to look at.
    """

    alerts: tuple[Alert, ...]
    looked: int
    missing: tuple[str, ...]


def check_alerts(rules: Sequence[Rule], status: Mapping[str, Any]) -> Checked:
    """Checks a run.

    Args:
        status: of ``exfm.watching.run_status.RunWatch.look``.

    Raises:
        ConfigError: a rule names a model that the run does not have.
    """
    names = [model["model"] for model in status["models"]]
    alerts: list[Alert] = []
    missing: list[str] = []
    looked = 0
    for number, rule in enumerate(rules):
        # A rule for a model that is not there would never fire, and nobody would notice.
        for name in rule.models:
            if name not in names:
                raise ConfigError(f"rules.{number}.models: no model is called {name!r}.{suggestion(name, names)}")
        for model in status["models"]:
            if rule.models and model["model"] not in rule.models:
                continue
            problems = [problem for problem in status["problems"] if problem["model"] == model["model"]]
            for finding in rule.look(model, problems):
                title = rule.name or rule.kind
                looked += 1
                # Reported apart, because a rule without a value to look at guards nothing.
                if finding.value is None:
                    missing.append(" ".join(filter(None, [f"{title}:", model["model"], finding.about])))
                elif finding.limit:
                    alerts.append(
                        Alert(
                            title,
                            rule.kind,
                            model["model"],
                            finding.about,
                            finding.value,
                            finding.limit,
                            finding.text,
                        )
                    )
    return Checked(tuple(alerts), looked, tuple(missing))


def webhook_url(webhook: Webhook) -> str:
    """Reads the URL, which is a secret, from the environment.

    Raises:
        ConfigError: there is none.
    """
    url = os.environ.get(webhook.url_env, "")
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"webhook.url_env: the environment variable {webhook.url_env} holds no http or https URL")
    # From here on no message shows it: errors of urllib may quote the URL.
    remember(url, f"${{oc.env:{webhook.url_env}}}")
    return url


def post_alerts(webhook: Webhook, status: Mapping[str, Any], alerts: Sequence[Alert]) -> None:
    """Posts alerts as JSON.

    Raises:
        RunError: the server does not take them.
    """
    lines = [str(alert) for alert in alerts]
    body = {
        "text": "\n".join([f"{status['name']}: {len(alerts)} alerts", *lines]),  # the key that chat systems show
        "run": status["run"],
        "name": status["name"],
        "at": status["at"],
        "alerts": [asdict(alert) for alert in alerts],
    }
    request = urllib.request.Request(
        webhook_url(webhook),
        data=redact(json.dumps(body, ensure_ascii=False)).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=webhook.timeout.total_seconds()) as answer:
            # To its end, so that the server does not see a connection that breaks off.
            answer.read()
    except (OSError, ValueError) as error:  # HTTP's errors and timeouts are OSErrors
        raise RunError(f"webhook: the server of {webhook.url_env} does not take the alerts: {error}") from error
