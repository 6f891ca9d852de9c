"""Formats figures for the terminal and for the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from exfm.config.run_files import CONTROL_SUFFIX

MISSING = "\u2013"
NO_COMMON_EXAMPLE = "no common example"
"""Replaces the gain of a pair whose models predicted no example in common."""

STYLES = {"better": "green", "worse": "red", "unclear": ""}
"""Colours of the verdicts in the terminal."""

_MINUS = "\u2212"
_USELESS_NE = 1.05
"""NE above 1, the NE of the overall base rate, by more than a model loses while it learns that rate."""


_CONSTANTS = {"binary": "the base rate", "regression": "the mean", "multiclass": "the frequencies of the classes"}
"""The best constant prediction of each kind of label."""


def fixed(value: float | None, digits: int = 4) -> str:
    """Formats a figure with a fixed number of digits after the point."""
    if value is None:
        return MISSING
    return f"{_rounded(value, digits):.{digits}f}".replace("-", _MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """Formats a difference with its sign."""
    if value is None:
        return MISSING
    return f"{_rounded(value, digits):+.{digits}f}".replace("-", _MINUS)


def _rounded(value: float, digits: int) -> float:
    # Adding zero turns -0.0 into 0.0, because a minus before zeros misleads.
    return round(value, digits) + 0.0


def percent(value: float | None, digits: int = 1) -> str:
    """Formats a share between 0 and 1 in percent."""
    if value is None:
        return MISSING
    return f"{100 * value:.{digits}f}%"


def count(value: float | None) -> str:
    """Formats a large number with three digits and a unit: 950, 12.3k, 4.56M."""
    if value is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """Formats a length of time in its largest unit of which it has at least two."""
    if seconds is None:
        return MISSING
    # From two on, because 90 minutes reads better than 1.5 hours.
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def gigabytes(size: float) -> str:
    """Formats bytes in the largest unit that they fill."""
    # Powers of ten, as vendors count the memory of devices.
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"


def interval(bounds: tuple[float, float] | None) -> str:
    """Formats both ends of an interval of differences in percent."""
    if bounds is None:
        return MISSING
    return f"{signed(bounds[0])}% to {signed(bounds[1])}%"


def stored_gain_share(gain: Mapping[str, Any]) -> float | None:
    """Reads the share of the teacher's gain from an entry of ``gains`` in results.json."""
    # Results of 0.1.0 have the share under its old name alone.
    key = "gain_share" if "gain_share" in gain else "transfer_ratio"
    share: float | None = gain[key]
    return share


def verdict(gain: Mapping[str, Any]) -> Literal["better", "worse", "unclear"]:
    """Classifies an entry of ``gains`` in results.json: unclear where its interval holds zero, or is missing."""
    low, high = gain["interval95"] or (0, 0)
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "unclear"


def is_control(model: str) -> bool:
    """Checks whether a name is that of an added control, which trains without transfer beside its model."""
    return model.endswith(CONTROL_SUFFIX)


def named_controls(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Writes a line for each control that models name in the experiment file.

    Args:
        entries: with ``model`` and ``control``, which is None where a model has none.
    """
    models: dict[str, list[str]] = {}
    for entry in entries:
        model, control = entry["model"], entry["control"]
        # An added control has its model's name, so tables need no line about it.
        if control not in (None, model + CONTROL_SUFFIX) and model not in models.setdefault(control, []):
            models[control].append(model)
    return [f"NE gain of {', '.join(names)}: over {control}" for control, names in models.items()]


def useless_models(results: Mapping[str, Any]) -> list[str]:
    """Writes a line for each model and task of results.json whose predictions are worse than the base rate alone."""
    lines = []
    for name, model in results["models"].items():
        for task, figures in model["tasks"].items():
            if (figures["ne"] or 0.0) > _USELESS_NE:
                constant = _CONSTANTS[figures.get("kind", "binary")]
                lines.append(
                    f"{name}, {task}: NE {fixed(figures['ne'], 2)} is worse than predicting {constant}: the model "
                    "has diverged, or learned nothing; lower its learning rates"
                )
    return lines


# Templates call these by their names here.
FILTERS: dict[str, Callable[..., str | float | None]] = {
    "fixed": fixed,
    "signed": signed,
    "percent": percent,
    "count": count,
    "duration": duration,
    "interval": interval,
    "gain_share": stored_gain_share,
}
