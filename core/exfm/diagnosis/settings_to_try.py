"""Suggests settings for each cause, by the keys of the experiment file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from exfm.config.run_files import CONTROL_SUFFIX
from exfm.diagnosis.thresholds import EXPLODED_NE

Json = Mapping[str, Any]


def exploded(entry: Json) -> bool:
    """Checks whether the control's NE diverged in some window, as it does with rates that are far too high."""
    return (entry["learning"]["ne_worst"] or 0.0) > EXPLODED_NE


def teachers_of(transfer: Json) -> tuple[str, ...]:
    """Lists the teachers of a transfer's section; the first that has a prediction for an example supervises it."""
    return (transfer["teacher"], *(transfer.get("fallback") or ()))


def settings_to_try(cause: str, entry: Json, config: Json) -> list[str]:
    """Lists settings, each a key with a change to it."""
    suggest = _SUGGESTIONS.get(cause)
    if suggest is None:
        return []
    return suggest(entry, config)


def _more_traffic(entry: Json, config: Json) -> list[str]:
    model = entry["model"]
    settings = [
        "stream.source: a longer stream",
        f"models.{model}.embedding_dim: now {config['models'][model]['embedding_dim']}; smaller",
    ]
    if config["models"][model].get("where"):
        settings.insert(0, f"models.{model}.where: more traffic")
    return settings


def _other_rates(entry: Json, config: Json) -> list[str]:
    # An added control has no section in the config: it trains with its model's rates.
    model = entry["control"].removesuffix(CONTROL_SUFFIX)
    control = entry["predictions"]["control"]
    # A training that diverges has predictions of any scale, so the scale says nothing about its rates.
    higher = control["recalibration"]["scale"] > 1 and not exploded(entry)
    # Two steps of 4 span the rates that are 20 times too high or too low.
    factor = 4.0 if higher else 0.25
    lines = []
    for kind in ("dense", "tables"):
        rate = config["models"][model]["optimizer"][kind]["lr"]
        lines.append(
            f"models.{model}.optimizer.{kind}.lr: now {rate:g}; {rate * factor:.3g}, then {rate * factor**2:.3g}"
        )
    return lines


def _transfer_key(entry: Json, config: Json) -> tuple[str, Json]:
    """Finds the key path and the section of the transfer that teaches the task."""
    model, teacher = entry["model"], entry["teacher"]
    for index, transfer in enumerate(config["models"][model]["transfer"]):
        if teacher in teachers_of(transfer):
            return f"models.{model}.transfer.{index}", transfer
    raise AssertionError(f"{model} has no transfer from {teacher}")


def _more_coverage(entry: Json, config: Json) -> list[str]:
    model, teacher = entry["model"], entry["teacher"]
    key, _ = _transfer_key(entry, config)
    source = f"teachers.{teacher}.path: files that cover the traffic of {model}"
    if not entry["elsewhere"]:
        source = f"models.{teacher}.where: the traffic of {model}"
    return [source, f"{key}.fallback: a teacher of the examples that {teacher} does not cover"]


def _fresher_supervision(entry: Json, config: Json) -> list[str]:
    teacher = entry["teacher"]
    delay = config["models"][teacher]["supervision"]["delay"]
    return [
        f"models.{teacher}.supervision.delay: now {delay}; shorter, or 0s",
        f"stream.window: now {config['stream']['window']}; a shorter window publishes snapshots sooner",
    ]


def _lower_teacher_rates(teacher: str, config: Json) -> list[str]:
    optimizer = config["models"][teacher]["optimizer"]
    return [
        f"models.{teacher}.optimizer.{kind}.lr: now {optimizer[kind]['lr']:g}; lower" for kind in ("dense", "tables")
    ]


def _prediction_kind(teacher: str, entry: Json, config: Json) -> str:
    task = entry["teacher_task"]
    kind = config["teachers"][teacher]["predictions"][task]["kind"]
    return f"teachers.{teacher}.predictions.{task}.kind: now {kind}; check that the column holds that"


def _less_noise(entry: Json, config: Json) -> list[str]:
    teacher = entry["teacher"]
    if entry["elsewhere"]:
        return [
            _prediction_kind(teacher, entry, config),
            f"teachers.{teacher}.example_id: check that it names the same examples as the stream's",
        ]
    return _lower_teacher_rates(teacher, config)


def _less_bias(entry: Json, config: Json) -> list[str]:
    teacher = entry["teacher"]
    key, transfer = _transfer_key(entry, config)
    strategy = (
        f"{key}.name: now {transfer['name']}; a strategy that corrects soft labels or keeps them from the serving head "
        "(`exfm components transfer_strategy`)"
    )
    if entry["elsewhere"]:
        return [strategy, _prediction_kind(teacher, entry, config)]
    return [strategy, *_lower_teacher_rates(teacher, config)]


def _better_teacher(entry: Json, config: Json) -> list[str]:
    teacher = entry["teacher"]
    if entry["elsewhere"]:
        return [f"teachers.{teacher}.path: predictions of a better teacher"]
    return [
        f"models.{teacher}.features, models.{teacher}.sequence_encoder: more than the student sees",
        f"models.{teacher}.backbone, models.{teacher}.embedding_dim: larger",
        f"models.{teacher}.where: more traffic than the student's",
    ]


def _lookup(entry: Json, config: Json) -> list[str]:
    best = max(entry["lookups"], key=lambda lookup: lookup["gain_share"] or 0.0)
    inputs = ", ".join(f"{{name: {name}, teacher: {entry['teacher']}}}" for name in best["inputs"])
    return [f"models.{entry['model']}.inputs: now none; [{inputs}], as {best['model']} has, at its cost when serving"]


def _larger_student(entry: Json, config: Json) -> list[str]:
    model = entry["model"]
    section = config["models"][model]
    seen = "all"
    if section.get("features") is not None:
        seen = ", ".join(section["features"])
    return [
        f"models.{model}.features: now {seen}; more",
        f"models.{model}.embedding_dim: now {section['embedding_dim']}; larger",
        f"models.{model}.backbone: more or wider layers",
    ]


def _narrower_intervals(entry: Json, config: Json) -> list[str]:
    key, transfer = _transfer_key(entry, config)
    more = ["stream.source: a longer stream, for narrower intervals", "seed: other seeds"]
    if "weight" in transfer:
        return [f"{key}.weight: now {transfer['weight']}; larger", *more]
    return more


# ``pays`` has none, because there is nothing to repair.
_SUGGESTIONS: Final[Mapping[str, Callable[[Json, Json], list[str]]]] = {
    "scarce_traffic": _more_traffic,
    "wrong_rate": _other_rates,
    "low_coverage": _more_coverage,
    "stale_teacher": _fresher_supervision,
    "noisy_teacher": _less_noise,
    "biased_teacher": _less_bias,
    "no_headroom": _better_teacher,
    "needs_lookup": _lookup,
    "small_student": _larger_student,
    "unclear": _narrower_intervals,
}
