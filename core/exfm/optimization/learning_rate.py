"""Computes the learning rate of a step from the warm-up and the schedule."""

from __future__ import annotations

import math

from exfm.config.training_sections import DenseOptimizer, RateSchedule


def learning_rate(config: DenseOptimizer, step: int) -> float:
    """Returns the learning rate of the dense layers in a step.

    The rate depends on the step alone, so that a resumed run goes on with it, and with a changed ``lr`` or schedule as
    if that had been the config from the start.

    Args:
        step: number of the step, 1 for the first.
    """
    # Without a warm-up the first step has the full rate, as the last step of a warm-up has.
    warmup = config.warmup or 1
    if step < warmup:
        return config.lr * step / warmup
    if config.schedule is None:
        return config.lr
    return config.lr * _fraction(config.schedule, step - warmup)


def _fraction(schedule: RateSchedule, steps: int) -> float:
    """Returns the fraction of ``lr`` that remains after a number of steps of a schedule."""
    if schedule.name == "inverse_sqrt":
        # With as many steps as the warm-up this is the schedule of Vaswani et al. (arXiv 1706.03762).
        return max(schedule.floor, math.sqrt(schedule.steps / (schedule.steps + steps)))
    progress = min(steps / schedule.steps, 1.0)
    fallen = progress
    if schedule.name == "cosine":
        fallen = (1.0 - math.cos(math.pi * progress)) / 2.0
    return 1.0 - (1.0 - schedule.floor) * fallen
