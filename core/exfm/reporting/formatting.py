"""How figures read, in the terminal and in the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from exfm.config.checks import CONTROL_SUFFIX

MISSING = "\u2013"
NO_COMMON_EXAMPLE = "no common example"
"""In place of the gain of a pair that was to be compared."""

STYLES = {"better": "green", "worse": "red", "unclear": ""}
"""Colours of the verdicts in the terminal."""

_MINUS = "\u2212"
_USELESS_NE = 1.05
"""Above 1, what the base rate scores that is known afterwards, by more than a model loses while it learns it."""


def fixed(value: float | None, digits: int = 4) -> str:
    """A figure with a fixed number of digits after the point."""
    return MISSING if value is None else f"{_rounded(value, digits):.{digits}f}".replace("-", _MINUS)


def signed(value: float | None, digits: int = 2) -> str:
    """A difference, with its sign."""
    return MISSING if value is None else f"{_rounded(value, digits):+.{digits}f}".replace("-", _MINUS)


def _rounded(value: float, digits: int) -> float:
    # Adding zero turns -0.0 into 0.0: there is no minus with nothing behind it.
    return round(value, digits) + 0.0


def percent(value: float | None, digits: int = 1) -> str:
    """A share of one, in percent."""
    return MISSING if value is None else f"{100 * value:.{digits}f}%"


def count(value: float | None) -> str:
    """A large number, short: 950, 12.3k, 4.56M."""
    if value is None:
        return MISSING
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float | None) -> str:
    """A length of time in the unit that suits it."""
    if seconds is None:
        return MISSING
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def interval(bounds: tuple[float, float] | None) -> str:
    """Both ends of an interval of differences in percent."""
    return MISSING if bounds is None else f"{signed(bounds[0])}% to {signed(bounds[1])}%"


def gain_share(gain: Mapping[str, Any]) -> float | None:
    """Share of the teacher's gain in an entry of results.json's gains; results of 0.1.0 have its old name alone."""
    share: float | None = gain["gain_share"] if "gain_share" in gain else gain["transfer_ratio"]
    return share


def verdict(gain: Mapping[str, Any]) -> Literal["better", "worse", "unclear"]:
    """What an entry of results.json's gains says: unclear where its interval holds zero, or is missing."""
    low, high = gain["interval95"] or (0, 0)
    if low > 0:
        return "better"
    return "worse" if high < 0 else "unclear"


def is_control(model: str) -> bool:
    """Whether a name is that of a control, which is trained without transfer beside its model."""
    return model.endswith(CONTROL_SUFFIX)


def named_controls(entries: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each control that models name, in place of a control of the same name as theirs.

    Args:
        entries: with ``model`` and ``control``, which is None where there is none.
    """
    models: dict[str, list[str]] = {}
    for entry in entries:
        model, control = entry["model"], entry["control"]
        if control not in (None, model + CONTROL_SUFFIX) and model not in models.setdefault(control, []):
            models[control].append(model)
    return [f"NE gain of {', '.join(names)}: over {control}" for control, names in models.items()]


def useless(results: Mapping[str, Any]) -> list[str]:
    """A line for each model and task of a results.json whose predictions are worse than the base rate alone."""
    return [
        f"{name}, {task}: NE {fixed(figures['ne'], 2)} is worse than predicting the base rate: the model has diverged, "
        "or learned nothing; lower its learning rates"
        for name, model in results["models"].items()
        for task, figures in model["tasks"].items()
        if (figures["ne"] or 0.0) > _USELESS_NE
    ]


FILTERS: dict[str, Callable[..., str | float | None]] = {
    "fixed": fixed,
    "signed": signed,
    "percent": percent,
    "count": count,
    "duration": duration,
    "interval": interval,
    "gain_share": gain_share,
}


def gigabytes(size: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size:,.0f} B"
