"""Defines the thresholds that separate causes, each with its reason. NE gains are in percent of the baseline's NE."""

from __future__ import annotations

from typing import Final

FEW_POSITIVES: Final = 500
"""Positive labels that a student needs. A logistic regression needs about ten for each coefficient (Peduzzi et al.
1996), and the smallest student has some dozens; with fewer, users are too few for the bootstrap too."""

HEADROOM_PERCENT: Final = 0.75
GAIN_PERCENT: Final = 0.5
NOISE_EXAMPLES: Final = 30_000
"""Headroom and gain that count, at NOISE_EXAMPLES scored examples; with more examples both shrink in proportion.
Intervals cover the chance of the examples and not that of the training: six students that differed in their
initialisation alone had NEs with a standard deviation of 0.36% on 29,000 examples, and of 0.03% on 115,000. Student and
control begin with equal weights; still, a teacher of 5% of the examples moved students by 0.4% either way."""

USELESS_NE: Final = 1.05
"""NE above 1, the NE of the overall base rate, by more than a drifting base rate costs an online model."""

NOTHING_LEARNED_NE: Final = 0.985
"""Recalibrated NE above which a model explains next to nothing. Its predictions hardly vary, so that their scale is
chance: a student that saw the surface alone had NEs of 0.983 to 1.008 and scales from 0 to 1.6."""

RATE_COST_PERCENT: Final = 0.2
"""Percent by which recalibration lowers the control's NE. An online model that keeps up is calibrated: sound rates cost
0.00% to 0.02%, table rates 20 times too high 0.4% and more, rates 20 times too low 2% and more."""

SOUND_SCALES: Final = (0.9, 1.15)
"""Recalibration scale of a control with sound rates; below, its steps overshoot; above, it has not got there yet."""

PAYING_SHARE: Final = 0.1
"""Share of the teacher's gain at which a clear gain is worth the cost of a teacher."""

LOW_COVERAGE: Final = 0.5
"""Share of examples with supervision below which labels alone outweigh the teacher."""

LARGE_LOSS: Final = 0.5
"""Share of the teacher's headroom that age or calibration take away when they are the main cause."""

NOISY_SCALE: Final = 0.6
"""Recalibration scale below which most of the variance of a teacher's logits is noise: noise as wide as the signal
makes it 0.5."""

NOISY_CONFIRMED: Final = 0.25
"""Share of the teacher's disagreement with the control that labels confirm. It is near 1 where the teacher is right,
and about 0.6 for the control's twin, because each is right half of the time."""

SMALL_EXPLAINED: Final = 0.5
"""Share of the entropy explained by the teacher that the control explains too. Below it the control lacks the
teacher's capacity or inputs; sound students of benchmarks/transfer/diagnose.py have 0.7 to 0.9."""

LOOKED_UP_SHARE: Final = 0.5
"""Share of the teacher's gain that a student with a lookup has, and none without does, where the lookup is the answer:
half is what the recommended recipe is held to."""

FLAT_PERCENT: Final = 2.0
"""Fall of the control's NE from the first to the last third of the scored windows above which it is still learning."""

EXPLODED_NE: Final = 1.2
"""NE of a window above which a model has diverged, and not merely begun badly: sound rates begin at 1.04 to 1.13."""
