"""Defines the rules of alerts, and reads them from a YAML file.

Each rule looks at the status of a model and says what is wrong, with the value and the limit.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final, TypeVar

import fsspec
import yaml
from pydantic import Field, ValidationError, model_validator

from exfm.config.section import Section
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.duration import Duration, format_duration
from exfm.watching.problems import duration

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Finding:
    """Holds the value that a rule looks at.

    Attributes:
        about: the task, or the teacher, or the job; empty if none.
        value: None: there is no such figure (yet).
        limit: the limit that the value has passed; empty if it has passed none.
        text: describes it.
    """

    about: str
    value: float | str | None
    limit: str = ""
    text: str = ""


class Rule(Section):
    """A rule that looks at each model of a run, or at some."""

    kind: ClassVar[str]
    name: str = Field("", description="Names the rule in alerts; by default its kind.")
    models: tuple[str, ...] = Field((), description="The models it looks at; all by default.")

    @abstractmethod
    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the values of a model.

        Args:
            model: the entry of the model in the status of the run.
            problems: the problems of the model there.
        """


class LagRule(Rule):
    """The newest committed window is too far behind the newest row of the stream."""

    kind: ClassVar[str] = "lag"
    above: Duration = Field(gt=timedelta(0), description="The longest lag that is no alert.")

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the lag."""
        yield _above("", model["lag_s"], self.above, "behind the stream")


class AgeRule(Rule):
    """The supervision that a model learned from in its newest window was too old."""

    kind: ClassVar[str] = "age"
    above: Duration = Field(gt=timedelta(0), description="The largest mean age that is no alert.")
    teachers: tuple[str, ...] = Field((), description="The teachers; all of the model's by default.")

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the age by teacher."""
        for teacher, figures in model["supervision"].items():
            if not self.teachers or teacher in self.teachers:
                yield _above(teacher, figures["age_s"], self.above, f"supervision by {teacher} is old:")


class CalibrationRule(Rule):
    """Predicted positives over positives of the newest window are too far from 1."""

    kind: ClassVar[str] = "calibration"
    below: float | None = Field(None, gt=0, description="The smallest calibration that is no alert.")
    above: float | None = Field(None, gt=0, description="The largest calibration that is no alert.")
    tasks: tuple[str, ...] = Field((), description="The tasks; all of the model's by default.")

    @model_validator(mode="after")
    def _has_a_limit(self) -> CalibrationRule:
        if self.below is None and self.above is None:
            raise ValueError("a calibration rule needs below, above or both")
        return self

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the calibration by task."""
        for task, figures in model["tasks"].items():
            value = figures["calibration"]
            if self.tasks and task not in self.tasks:
                continue
            limit = ""
            if value is not None and self.below is not None and value < self.below:
                limit = f"below {self.below:g}"
            elif value is not None and self.above is not None and value > self.above:
                limit = f"above {self.above:g}"
            yield Finding(task, value, limit, f"calibration of {task} is {value or 0:.3f}")


class NeJumpRule(Rule):
    """NE of the newest window is higher than a day before, or than in the window before where that is not there."""

    kind: ClassVar[str] = "ne_jump"
    above: float = Field(gt=0, description="The largest relative rise that is no alert: 0.02 is 2%.")
    tasks: tuple[str, ...] = Field((), description="The tasks; all of the model's by default.")

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the rise by task."""
        for task, figures in model["tasks"].items():
            if self.tasks and task not in self.tasks:
                continue
            now, before = figures["ne"], figures["ne_before"]
            # Without an NE before, or with an NE of 0, a relative rise means nothing.
            if now is None or not before:
                yield Finding(task, None)
                continue
            rise = now / before - 1
            limit = f"above {self.above:.1%}" if rise > self.above else ""
            yield Finding(task, rise, limit, f"NE of {task} rose by {rise:.1%}, from {before:.4f} to {now:.4f}")


class HeldRule(Rule):
    """A gate holds the newest snapshot back."""

    kind: ClassVar[str] = "held"
    versions: int = Field(1, gt=0, description="So many windows without a published snapshot are an alert.")

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the number of windows since the snapshot in use."""
        snapshot = model["snapshot"]
        if snapshot is None:
            yield Finding("", None)
            return
        behind = 0
        if snapshot["held"]:
            # Versions begin at 0, so that without a published snapshot all of them are held.
            behind = snapshot["newest"] - (-1 if snapshot["in_use"] is None else snapshot["in_use"])
        reasons = "; ".join(snapshot["held"].values())
        in_use = "none" if snapshot["in_use"] is None else f"snapshot {snapshot['in_use']}"
        limit = f"{self.versions} or more" if behind >= self.versions else ""
        yield Finding("", behind, limit, f"snapshot {snapshot['newest']} is held, in use is {in_use}: {reasons}")


class ProblemRule(Rule):
    """`exfm status` shows a problem: a job that has crashed, a model that stands still, a student that lags."""

    kind: ClassVar[str] = "problem"
    problems: tuple[str, ...] = Field(("crashed", "stalled", "unreadable"), description="The kinds of problem.")

    def look(self, model: Mapping[str, Any], problems: Sequence[Mapping[str, Any]]) -> Iterator[Finding]:
        """Yields the problems."""
        for problem in problems:
            if problem["kind"] in self.problems:
                yield Finding(problem["job"], problem["kind"], problem["kind"], problem["text"])


RULES: Final[Mapping[str, type[Rule]]] = {
    rule.kind: rule for rule in (LagRule, AgeRule, CalibrationRule, NeJumpRule, HeldRule, ProblemRule)
}


class Webhook(Section):
    """Where alerts are posted."""

    url_env: str = Field(min_length=1, description="The environment variable that holds the URL.")
    timeout: Duration = Field(timedelta(seconds=10), gt=timedelta(0), description="The longest wait for an answer.")


@dataclass(frozen=True)
class AlertRules:
    """Holds a file of rules."""

    rules: tuple[Rule, ...]
    webhook: Webhook | None


def read_rules(path: str) -> AlertRules:
    """Reads a file of rules.

    Raises:
        ConfigError: it cannot be read, or a rule is wrong; the message has the key path.
    """
    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            raw = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path}: the rules cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("rules"), list) or not raw["rules"]:
        raise ConfigError(f"{path}: rules: a list of rules such as {{kind: lag, above: 6h}} is expected")
    # A misspelt webhook would otherwise mean alerts that nobody receives.
    for key in raw:
        if key not in ("rules", "webhook"):
            raise ConfigError(f"{path}: {key}: no such key.{suggestion(str(key), ('rules', 'webhook'))}")
    rules = [_rule(f"{path}: rules.{number}", entry) for number, entry in enumerate(raw["rules"])]
    webhook = None
    if raw.get("webhook") is not None:
        webhook = _parsed(f"{path}: webhook", Webhook, raw["webhook"])
    return AlertRules(tuple(rules), webhook)


def _rule(where: str, entry: Any) -> Rule:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in RULES:
        raise ConfigError(f"{where}.kind: no kind of rule is called {kind!r}.{suggestion(str(kind), RULES)}")
    fields = {key: value for key, value in entry.items() if key != "kind"}
    return _parsed(where, RULES[kind], fields)


def _parsed(where: str, section: type[S], fields: Any) -> S:
    try:
        return section.model_validate(fields)
    except ValidationError as error:
        detail = error.errors()[0]
        location = ".".join(map(str, detail["loc"]))
        name = str(detail["loc"][-1]) if detail["loc"] else ""
        hint = suggestion(name, section.model_fields) if detail["type"] == "extra_forbidden" else ""
        # pydantic puts this before the messages of our validators.
        message = detail["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{where}{'.' if location else ''}{location}: {message}.{hint}") from error


def _above(about: str, seconds: float | None, limit: timedelta, text: str) -> Finding:
    """Compares a time with a limit."""
    if seconds is None:
        return Finding(about, None)
    passed = f"above {format_duration(limit)}" if seconds > limit.total_seconds() else ""
    words = f"{duration(seconds)} {text}" if not text.endswith(":") else f"{text} {duration(seconds)}"
    return Finding(about, seconds, passed, words)
