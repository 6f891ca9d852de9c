"""Explains that a model has diverged, before anything of the window is committed."""

from __future__ import annotations

from exfm.config.checks import Arm
from exfm.config.training_sections import DenseOptimizer, OptimizerConfig
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.table_optimizer import TableOptimizer


def diverged(arm: Arm, window: Window, symptom: str, last: Window | None) -> RunError:
    """Returns the error of a model that has diverged: names the symptom, the usual cause and the remedy.

    Args:
        symptom: names the values that are not finite.
        last: the window after which the model has a snapshot, if any.
    """
    stands = "there is no snapshot yet"
    if last is not None:
        stands = f"the last good snapshot, after window {last}, stands"
    override, rate = _lower_rate(arm.config.optimizer)
    override = f"models.{arm.base}.optimizer.{override}"
    return RunError(
        f"model {arm.name!r}, window {window}: the model diverged: {symptom}. The window is not committed; {stands}. "
        f"A learning rate that is too high is the usual cause: run again with a lower one, such as {override} "
        f"(now {rate:.3g}): `exfm run CONFIG {override}`"
    )


def _lower_rate(optimizer: OptimizerConfig) -> tuple[str, float]:
    """Suggests a lower value of the learning rate that lies furthest above its default; returns its value too."""
    usual = {"dense": DenseOptimizer().lr, "tables": TableOptimizer().lr}
    rates = {"dense": optimizer.dense.lr, "tables": optimizer.tables.lr}
    name = max(rates, key=lambda name: rates[name] / usual[name])
    # A tenth, but no higher than the default: near enough to try, far enough to matter.
    return f"{name}.lr={min(rates[name] / 10, usual[name]):.3g}", rates[name]
