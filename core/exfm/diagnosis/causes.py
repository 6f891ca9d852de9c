"""Decides on the main cause why transfer pays or does not, from the measures of a taught task.

Causes are checked in the order of ``CAUSES``, and the first that holds is the main cause: a cause that invalidates the
figures of later causes comes before them. Where none holds, the cause is ``unclear``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from exfm.diagnosis.settings_to_try import exploded, settings_to_try
from exfm.diagnosis.thresholds import (
    FEW_POSITIVES,
    FLAT_PERCENT,
    GAIN_PERCENT,
    HEADROOM_PERCENT,
    LARGE_LOSS,
    LOOKED_UP_SHARE,
    LOW_COVERAGE,
    NOISE_EXAMPLES,
    NOISY_CONFIRMED,
    NOISY_SCALE,
    NOTHING_LEARNED_NE,
    PAYING_SHARE,
    RATE_COST_PERCENT,
    SMALL_EXPLAINED,
    SOUND_SCALES,
    USELESS_NE,
)

Json = Mapping[str, Any]

Evidence = tuple[str, Mapping[str, float | None]]
"""A sentence, and by name the figures that it rests on."""


def decide(entry: Json, config: Json) -> dict[str, Any]:
    """Decides on the cause of a taught task.

    Args:
        entry: its measures, an entry of ``students`` without verdict.
        config: the run's config.

    Returns:
        ``cause``, ``words``, ``figures``, ``settings``, and ``also``: the later causes that hold as well.
    """
    held: dict[str, Evidence] = {}
    for cause, evidence_for in CAUSES.items():
        evidence = evidence_for(entry)
        if evidence is not None:
            held[cause] = evidence
    if not held:
        held["unclear"] = _unclear_cause(entry)
    # Dictionaries keep their order, so the first is the main cause.
    cause, *others = held
    words, figures = held[cause]
    return {
        "cause": cause,
        "words": words,
        "figures": dict(figures),
        "settings": settings_to_try(cause, entry, config),
        "also": others,
    }


def worth(percent: float, entry: Json) -> float:
    """Lowers a threshold of NE gain in proportion to the scored examples of a taught task."""
    examples: int = entry["gain"]["examples"]
    return percent * min(1.0, NOISE_EXAMPLES / max(examples, 1))


def clearly_above(difference: Json | None, percent: float = 0.0) -> bool:
    """Checks that a difference is at least ``percent``, and that its whole interval is above zero."""
    if difference is None or difference["percent"] is None or difference["interval95"] is None:
        return False
    return bool(difference["interval95"][0] > 0 and difference["percent"] >= percent)


def _scarce_traffic(entry: Json) -> Evidence | None:
    positives = entry["positives"]
    if positives >= FEW_POSITIVES:
        return None
    return (
        f"{positives:,} positive labels in {entry['examples']:,} examples are too few for the student to learn from, "
        "and for a gain to be measured.",
        {"positives": positives, "examples": entry["examples"], "gain_percent": entry["gain"]["percent"]},
    )


def _wrong_rate(entry: Json) -> Evidence | None:
    control = entry["predictions"]["control"]
    ne, better, fit = control["ne"], control["ne_recalibrated"], control["recalibration"]
    if ne is None or better is None:
        return None
    cost, scale, worst = 100 * (ne - better) / ne, fit["scale"], entry["learning"]["ne_worst"]
    figures = {"control_ne": ne, "control_scale": scale, "recalibration_takes_percent": cost, "worst_window_ne": worst}
    if ne > USELESS_NE or (better > NOTHING_LEARNED_NE and exploded(entry)):
        return (
            "Even without a teacher the student does no better than the base rate: its training is in trouble.",
            figures,
        )
    # Predictions that hardly vary have no meaningful scale, so it says nothing about rates.
    if better > NOTHING_LEARNED_NE or cost < RATE_COST_PERCENT or SOUND_SCALES[0] <= scale <= SOUND_SCALES[1]:
        return None
    if scale < 1:
        return (
            "Even without a teacher the student's predictions are too far apart: its learning rates are too high.",
            figures,
        )
    return (
        "Even without a teacher the student's predictions stay too close together: its learning rates are too low.",
        figures,
    )


def _pays(entry: Json) -> Evidence | None:
    gain, share = entry["gain"], entry["gain_share"]
    # Without a share the teacher is not clearly better than the control, and a gain still counts.
    if not clearly_above(gain, worth(GAIN_PERCENT, entry)) or (share is not None and share < PAYING_SHARE):
        return None
    of_teachers_gain = ""
    if share is not None:
        of_teachers_gain = f", {share:.0%} of what its teacher has over the control"
    words = f"The student is {gain['percent']:.2f}% better than its control{of_teachers_gain}."
    figures: dict[str, float | None] = {"gain_percent": gain["percent"], "gain_share": share}
    lookup = _needs_lookup(entry)
    if lookup is not None:
        words, figures = f"{words} {lookup[0]}", {**figures, **lookup[1]}
    return words, figures


def _low_coverage(entry: Json) -> Evidence | None:
    # Since the first supervision, because a teacher that starts late is no hole in the coverage.
    share = entry["reach"]["supervised_share_since_first"] or 0.0
    if share >= LOW_COVERAGE:
        return None
    return f"Only {share:.1%} of the student's examples have supervision.", {"supervised_share": share}


def _stale_teacher(entry: Json) -> Evidence | None:
    reach = entry["reach"]
    fresh, cost = reach["fresh_headroom"], reach["staleness_cost"]
    if not clearly_above(fresh, worth(HEADROOM_PERCENT, entry)):
        return None
    if not clearly_above(cost, LARGE_LOSS * fresh["percent"]):
        return None
    return (
        "The teacher's own predictions are clearly better than the supervision that the student got from it: it was "
        "too old.",
        {
            "staleness_cost_percent": cost["percent"],
            "fresh_headroom_percent": fresh["percent"],
            "median_age_s": (reach["age_s"] or {}).get("p50"),
        },
    )


def _noisy_teacher(entry: Json) -> Evidence | None:
    fit, confirmed = entry["predictions"]["teacher"]["recalibration"], entry["agreement"]["confirmed"]
    headroom = entry["headroom"]["recalibrated"]
    # A noisy teacher that is still clearly better than the control has something to teach.
    if fit is None or confirmed is None or clearly_above(headroom, worth(HEADROOM_PERCENT, entry)):
        return None
    if fit["scale"] >= NOISY_SCALE or confirmed >= NOISY_CONFIRMED:
        return None
    return (
        "The teacher is sure of predictions that the labels do not bear out: most of what it says is noise.",
        {"teacher_scale": fit["scale"], "confirmed": confirmed, "headroom_percent": headroom["percent"]},
    )


def _biased_teacher(entry: Json) -> Evidence | None:
    ordered, cost = entry["headroom"]["recalibrated"], entry["headroom"]["calibration_cost_percent"]
    if not clearly_above(ordered, worth(HEADROOM_PERCENT, entry)):
        return None
    if cost is None or cost < LARGE_LOSS * ordered["percent"]:
        return None
    teacher = entry["predictions"]["teacher"]
    if teacher["recalibration"] is None:
        return None
    scale, shift = teacher["recalibration"]["scale"], teacher["recalibration"]["shift"]
    # Sound scales are those of a control. Around a teacher they are taken symmetrically in the logarithm.
    kind = "its level is wrong"
    if scale < SOUND_SCALES[0]:
        kind = "its predictions are too far apart"
    if scale > 1 / SOUND_SCALES[0]:
        kind = "its predictions are too close together"
    return (
        f"The teacher ranks better than the control, and loses more than half of that to its calibration: {kind}.",
        {
            "teacher_scale": scale, "teacher_shift": shift, "teacher_calibration": teacher["calibration"],
            "calibration_cost_percent": cost, "headroom_percent": ordered["percent"],
        },
    )  # fmt: skip


def _no_headroom(entry: Json) -> Evidence | None:
    ordered = entry["headroom"]["recalibrated"]
    if ordered["percent"] is None or ordered["interval95"] is None:
        return None
    if ordered["percent"] >= worth(HEADROOM_PERCENT, entry):
        return None
    # An interval that reaches twice the threshold is too wide to exclude headroom.
    if ordered["interval95"][1] >= 2 * worth(HEADROOM_PERCENT, entry):
        return None
    return (
        "Once both are recalibrated, the teacher is no better than the student's control on the student's examples.",
        {"headroom_percent": ordered["percent"]},
    )


def _needs_lookup(entry: Json) -> Evidence | None:
    # The best without a lookup, and not this student: another way of transfer may reach more at no cost when serving.
    share, lookups = entry["best_without_lookup"], entry["lookups"]
    lookups = [lookup for lookup in lookups if lookup["gain_share"] is not None]
    if share is None or share >= LOOKED_UP_SHARE or not lookups:
        return None
    lookups.sort(key=lambda lookup: lookup["gain_share"], reverse=True)
    best, *others = lookups
    if best["gain_share"] < LOOKED_UP_SHARE:
        return None
    words = (
        f"The teacher's lead has to be looked up: students of the same control reach {best['gain_share']:.0%} of it "
        f"with {', '.join(best['inputs'])} ({best['model']}), and at most {share:.0%} without."
    )
    for other in others:
        words += f" {', '.join(other['inputs'])} ({other['model']}): {other['gain_share']:.0%}."
    return words, {"best_share_without_lookup": share, "looked_up_share": best["gain_share"]}


def _small_student(entry: Json) -> Evidence | None:
    teacher, control = entry["predictions"]["teacher"], entry["predictions"]["control"]
    fall = entry["learning"]["fall_percent"]
    if not clearly_above(entry["headroom"]["recalibrated"], worth(HEADROOM_PERCENT, entry)):
        return None
    # A control whose NE still falls may yet explain more: it is young, and not small.
    if fall is None or fall > FLAT_PERCENT:
        return None
    explained = entry["explained_share"]
    if explained is None or explained >= SMALL_EXPLAINED:
        return None
    return (
        "The student learns no more from labels either, and explains far less than the teacher: it is too small, or "
        "sees too little.",
        {
            "explained_share": explained,
            "control_ne": control["ne"],
            "teacher_ne_recalibrated": teacher["ne_recalibrated"],
            "fall_percent": fall,
        },
    )


def _unclear_cause(entry: Json) -> Evidence:
    moved, bounds = entry["moved"], entry["gain"]["interval95"]
    words = "The figures do not separate the causes: no gain worth its teacher is clear, and no known reason is."
    if bounds is not None and bounds[1] < 0:
        words += " The student is clearly worse than its control."
    # A tenth of the distance from control to teacher: a larger weight has room to move the student further.
    if moved is not None and moved < 0.1:
        words += " Transfer has hardly moved the student from its control."
    return words, {
        "gain_percent": entry["gain"]["percent"],
        "headroom_percent": entry["headroom"]["recalibrated"]["percent"],
        "moved": moved,
    }


CAUSES: Final[Mapping[str, Callable[[Json], Evidence | None]]] = {
    "scarce_traffic": _scarce_traffic,
    "wrong_rate": _wrong_rate,
    "pays": _pays,
    "low_coverage": _low_coverage,
    "stale_teacher": _stale_teacher,
    "noisy_teacher": _noisy_teacher,
    "biased_teacher": _biased_teacher,
    "no_headroom": _no_headroom,
    "needs_lookup": _needs_lookup,
    "small_student": _small_student,
}
