"""Settings to try next for each cause, by the keys of the experiment file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exfm.config.checks import CONTROL_SUFFIX
from exfm.diagnosis.thresholds import EXPLODED_NE

Json = Mapping[str, Any]


def exploded(entry: Json) -> bool:
    """Tells whether the control's NE ran away in some window, as it does with rates that are far too high."""
    return (entry["learning"]["ne_worst"] or 0.0) > EXPLODED_NE


def teachers_of(transfer: Json) -> tuple[str, ...]:
    """Names the teachers of a transfer's section, in the order in which they are asked."""
    return (transfer["teacher"], *(transfer.get("fallback") or ()))


def settings_to_try(cause: str, entry: Json, config: Json) -> list[str]:
    """Lists settings, each a key with what to do about it."""
    model, teacher = entry["model"], entry["teacher"]
    makers: dict[str, Callable[[], list[str]]] = {
        "scarce_traffic": lambda: _scarce(model, config),
        "wrong_rate": lambda: _rates(entry, config),
        "low_coverage": lambda: _coverage(model, teacher, entry, config),
        "stale_teacher": lambda: _staleness(teacher, config),
        "noisy_teacher": lambda: _noise(teacher, entry, config),
        "biased_teacher": lambda: _bias(teacher, entry, config),
        "no_headroom": lambda: _headroom(teacher, entry),
        "small_student": lambda: _size(model, config),
        "unclear": lambda: _unclear(entry, config),
    }
    return makers[cause]() if cause in makers else []


def _scarce(model: str, config: Json) -> list[str]:
    settings = [
        "stream.source: a longer stream",
        f"models.{model}.embedding_dim: now {config['models'][model]['embedding_dim']}; smaller",
    ]
    return [f"models.{model}.where: more traffic", *settings] if config["models"][model].get("where") else settings


def _rates(entry: Json, config: Json) -> list[str]:
    model = entry["control"].removesuffix(CONTROL_SUFFIX)
    control = entry["predictions"]["control"]
    higher = control["recalibration"]["scale"] > 1 and not exploded(entry)
    factor = 4.0 if higher else 0.25
    lines = []
    for part in ("dense", "tables"):
        rate = config["models"][model]["optimizer"][part]["lr"]
        lines.append(
            f"models.{model}.optimizer.{part}.lr: now {rate:g}; {rate * factor:.3g}, then {rate * factor**2:.3g}"
        )
    return lines


def _transfer_key(entry: Json, config: Json) -> tuple[str, Json]:
    """Finds the key path of the transfer that teaches the lesson, and its section."""
    model, teacher = entry["model"], entry["teacher"]
    for index, transfer in enumerate(config["models"][model]["transfer"]):
        if teacher in teachers_of(transfer):
            return f"models.{model}.transfer.{index}", transfer
    raise AssertionError(f"{model} has no transfer from {teacher}")


def _coverage(model: str, teacher: str, entry: Json, config: Json) -> list[str]:
    key, _ = _transfer_key(entry, config)
    source = f"teachers.{teacher}.path: files that cover the traffic of {model}"
    if not entry["elsewhere"]:
        source = f"models.{teacher}.where: the traffic of {model}"
    return [source, f"{key}.fallback: a teacher of the examples that {teacher} does not cover"]


def _staleness(teacher: str, config: Json) -> list[str]:
    delay = config["models"][teacher]["supervision"]["delay"]
    return [
        f"models.{teacher}.supervision.delay: now {delay}; shorter, or 0s",
        f"stream.window: now {config['stream']['window']}; a shorter window publishes snapshots sooner",
    ]


def _teacher_rates(teacher: str, config: Json) -> list[str]:
    optimizer = config["models"][teacher]["optimizer"]
    return [
        f"models.{teacher}.optimizer.{part}.lr: now {optimizer[part]['lr']:g}; lower" for part in ("dense", "tables")
    ]


def _kind(teacher: str, entry: Json, config: Json) -> str:
    task = entry["teacher_task"]
    kind = config["teachers"][teacher]["predictions"][task]["kind"]
    return f"teachers.{teacher}.predictions.{task}.kind: now {kind}; check that the column holds that"


def _noise(teacher: str, entry: Json, config: Json) -> list[str]:
    if entry["elsewhere"]:
        return [
            _kind(teacher, entry, config),
            f"teachers.{teacher}.example_id: check that it names the same examples as the stream's",
        ]
    return _teacher_rates(teacher, config)


def _bias(teacher: str, entry: Json, config: Json) -> list[str]:
    key, transfer = _transfer_key(entry, config)
    strategy = (
        f"{key}.name: now {transfer['name']}; a strategy that corrects soft labels or keeps them from the serving head "
        "(`exfm components transfer_strategy`)"
    )
    return [strategy, *([_kind(teacher, entry, config)] if entry["elsewhere"] else _teacher_rates(teacher, config))]


def _headroom(teacher: str, entry: Json) -> list[str]:
    if entry["elsewhere"]:
        return [f"teachers.{teacher}.path: predictions of a better teacher"]
    return [
        f"models.{teacher}.features, models.{teacher}.sequence_encoder: more than the student sees",
        f"models.{teacher}.backbone, models.{teacher}.embedding_dim: larger",
        f"models.{teacher}.where: more traffic than the student's",
    ]


def _size(model: str, config: Json) -> list[str]:
    section = config["models"][model]
    seen = "all" if section.get("features") is None else ", ".join(section["features"])
    return [
        f"models.{model}.features: now {seen}; more",
        f"models.{model}.embedding_dim: now {section['embedding_dim']}; larger",
        f"models.{model}.backbone: more or wider layers",
    ]


def _unclear(entry: Json, config: Json) -> list[str]:
    key, transfer = _transfer_key(entry, config)
    more = ["stream.source: a longer stream, for narrower intervals", "seed: other seeds"]
    if "weight" in transfer:
        return [f"{key}.weight: now {transfer['weight']}; larger", *more]
    return more
