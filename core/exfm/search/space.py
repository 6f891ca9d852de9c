"""Turns searched parameters into Optuna's suggestions and into overrides of the experiment."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from exfm.config.search_section import SearchedParameter
from exfm.errors import ConfigError

Values = Mapping[str, Any]
"""Values of parameters by key path."""

Parameters = Mapping[str, SearchedParameter]


def suggest(trial: Any, parameters: Parameters) -> dict[str, Any]:
    """Suggests a value of each parameter, or returns the values that an Optuna trial has."""
    values: dict[str, Any] = {}
    for key, parameter in parameters.items():
        low, high, step = parameter.low, parameter.high, parameter.step
        if parameter.choices is not None:
            # As JSON, because Optuna's choices are scalars.
            values[key] = json.loads(trial.suggest_categorical(key, list(map(json.dumps, parameter.choices))))
        elif parameter.is_whole:
            values[key] = trial.suggest_int(key, low, high, step=step or 1, log=parameter.log)
        else:
            values[key] = trial.suggest_float(key, low, high, step=step, log=parameter.log)
    return values


def as_optuna(parameters: Parameters, values: Values) -> dict[str, Any]:
    """Returns values as Optuna keeps them."""
    return {key: json.dumps(values[key]) if parameters[key].choices is not None else values[key] for key in parameters}


def overrides(values: Values) -> list[str]:
    """Writes values as overrides; JSON is YAML too."""
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


def grid_size(parameters: Parameters) -> int | None:
    """Counts the points of the grid of all values; None where a range is continuous."""
    sizes = [_size(parameter) for parameter in parameters.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _size(parameter: SearchedParameter) -> int | None:
    if parameter.choices is not None:
        return len(parameter.choices)
    assert parameter.low is not None and parameter.high is not None
    if parameter.step is None and not parameter.is_whole:
        return None
    # A tenth of a step of slack, because decimal steps do not add up exactly.
    return math.floor((parameter.high - parameter.low) / (parameter.step or 1) + 0.1) + 1


def two_values(parameter: SearchedParameter) -> tuple[Any, Any]:
    """Returns two different values of a parameter."""
    if parameter.choices is not None:
        return parameter.choices[0], parameter.choices[1]
    return parameter.low, parameter.high


def file_values(parameters: Parameters, resolved: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Reads the values of the file as it is, which are the first trial.

    Args:
        resolved: the resolved config.
        where: names the file in messages.

    Raises:
        ConfigError: a key does not exist, or its value is not among those that are searched.
    """
    values: dict[str, Any] = {}
    for key, parameter in parameters.items():
        values[key] = _value_at(resolved, key, where)
        if not _holds(parameter, values[key]):
            raise ConfigError(
                f"{where}: search.parameters.{key}: the file has {values[key]!r} at {key}, which is not among the "
                "values; the first trial is the file as it is, so let the file have one of them"
            )
    return values


def _value_at(resolved: Mapping[str, Any], key: str, where: str) -> Any:
    node: Any = resolved
    for name in key.split("."):
        if isinstance(node, Mapping) and name in node:
            node = node[name]
        elif isinstance(node, list | tuple) and name.isdigit() and int(name) < len(node):
            node = node[int(name)]
        else:
            raise ConfigError(f"{where}: search.parameters.{key}: the experiment has no key {key}")
    return node


def _holds(parameter: SearchedParameter, value: Any) -> bool:
    if parameter.choices is not None:
        # As JSON, because Python takes 1, 1.0 and True for equal.
        return json.dumps(value) in list(map(json.dumps, parameter.choices))
    assert parameter.low is not None and parameter.high is not None
    # A bool is an int to Python, and no number of a range.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return parameter.low <= value <= parameter.high


def label(values: Values) -> str:
    """Names values in a line, each by the last name of its key path."""
    words = [f"{key.rpartition('.')[2]}={_short(value)}" for key, value in values.items()]
    return ", ".join(words) or "as in the file"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
