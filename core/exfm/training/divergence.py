"""The error of a model that has diverged: raised before anything of the window is committed."""

from __future__ import annotations

from exfm.config.checks import Arm
from exfm.config.experiment import DenseOptimizer, OptimizerConfig
from exfm.errors import RunError
from exfm.interfaces.data_source import Window
from exfm.interfaces.parallel_plan import TableOptimizer


def diverged(arm: Arm, window: Window, symptom: str, last: Window | None) -> RunError:
    """Says what is not finite, why that is so as a rule, and how to go on.

    Args:
        symptom: what is not finite.
        last: the window after which the model has a snapshot, if any.
    """
    stands = "there is no snapshot yet" if last is None else f"the last good snapshot, after window {last}, stands"
    return RunError(
        f"model {arm.name!r}, window {window}: the model diverged: {symptom}. The window is not committed; {stands}. "
        f"A learning rate that is too high is the usual cause: run again with a lower one, such as "
        f"models.{arm.base}.optimizer.{_lower_rate(arm.config.optimizer)}"
    )


def _lower_rate(optimizer: OptimizerConfig) -> str:
    """The rate that lies furthest above its default, lowered, with what it is now."""
    usual = {"dense": DenseOptimizer().lr, "tables": TableOptimizer().lr}
    rates = {"dense": optimizer.dense.lr, "tables": optimizer.tables.lr}
    name = max(rates, key=lambda one: rates[one] / usual[one])
    return f"{name}.lr={min(rates[name] / 10, usual[name]):.3g} (now {rates[name]:.3g})"
