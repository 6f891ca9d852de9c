"""Scores predictions of each kind of label: its loss, and the loss of the best constant prediction, whose ratio is NE.

A kind's figures do not depend on the head that learns it, so that models with different heads are compared alike:

- binary: log loss, over the entropy of the base rate;
- regression: squared error, over the variance of the labels, so that NE is 1 - R^2;
- multiclass: log loss of the true class, over the entropy of the classes' frequencies.

Legend: E examples, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from exfm.evaluation.metrics import CLIP, Floats, Moments, as_count, log_losses
from exfm.interfaces.schema import LabelKind

Doubles = npt.NDArray[np.float64]
Labels = npt.NDArray[Any]
"""Labels (E,): bool of a binary label, float64 of a number, int64 of a class."""

_LEAST_MEAN: Final = 0.1
"""Deviations by which a mean differs from zero, so that a ratio to it is no noise (ours)."""


@dataclass(frozen=True)
class ValueMoments(Moments):
    """Sums squared errors, predictions and labels of a regression; ``positives`` is the sum of the labels.

    Attributes:
        label_squares: sum of the squared labels.
    """

    label_squares: float = 0.0

    @property
    def labels(self) -> tuple[Any, ...]:
        """The sums of the labels."""
        return self.examples, self.positives, self.label_squares

    @classmethod
    def from_predictions(cls, prediction_E: Floats, label_E: Labels, weight_E: Floats | None = None) -> Self:
        """Sums over E examples; each weighs 1 by default."""
        weight_E = np.ones(label_E.size) if weight_E is None else weight_E.astype(np.float64)
        loss_E = squared_errors(prediction_E, label_E)
        return cls(
            examples=as_count(float(weight_E.sum())),
            positives=float(label_E @ weight_E),
            loss_sum=float(loss_E @ weight_E),
            prediction_sum=float(prediction_E.astype(np.float64) @ weight_E),
            label_squares=float(np.square(label_E) @ weight_E),
        )

    @property
    def baseline(self) -> float | None:
        """The variance of the labels; None where they are all alike."""
        if not self.examples:
            return None
        mean, square = self.positives / self.examples, self.label_squares / self.examples
        variance = square - mean * mean
        # Rounding of the two sums: a smaller difference of them means nothing.
        return variance if variance > 1e-12 * square else None

    @property
    def mean_label(self) -> float | None:
        """The mean of the labels."""
        return self.positives / self.examples if self.examples else None

    @property
    def base_rate(self) -> float | None:
        """None: numbers have no positives."""
        return None

    @property
    def calibration(self) -> float | None:
        """Mean prediction over mean label; None where that mean is near zero for the labels' deviation."""
        mean = self.mean_label
        if mean is None or abs(mean) <= _LEAST_MEAN * math.sqrt(self.baseline or 0.0):
            return None
        return self.prediction_sum / self.positives

    @property
    def fewest(self) -> float:
        """The weight of the examples."""
        return self.examples


@dataclass(frozen=True)
class ClassMoments(Moments):
    """Sums log losses of true classes; ``positives`` are the examples whose most probable class is the true class.

    ``prediction_sum`` is the sum of the largest probabilities, so that calibration is confidence over accuracy.

    Attributes:
        class_counts: the weight of the examples of each class.
    """

    class_counts: tuple[float, ...] = ()

    @property
    def labels(self) -> tuple[Any, ...]:
        """The counts of the classes; ``positives`` are right predictions, which are the model's."""
        return self.examples, self.class_counts

    @classmethod
    def from_predictions(cls, prediction_EC: Floats, label_E: Labels, weight_E: Floats | None = None) -> Self:
        """Sums over E examples; each weighs 1 by default."""
        weight_E = np.ones(label_E.size) if weight_E is None else weight_E.astype(np.float64)
        # With all classes, also those that the window lacks: sums of windows must have equal lengths.
        counts_C = np.bincount(label_E, weights=weight_E, minlength=prediction_EC.shape[1])
        return cls(
            examples=as_count(float(weight_E.sum())),
            positives=as_count(float(weight_E[prediction_EC.argmax(axis=1) == label_E].sum())),
            loss_sum=float(class_losses(prediction_EC, label_E) @ weight_E),
            prediction_sum=float(prediction_EC.max(axis=1, initial=0.0).astype(np.float64) @ weight_E),
            class_counts=tuple(map(as_count, counts_C.tolist())),
        )

    @property
    def baseline(self) -> float | None:
        """The entropy of the classes' frequencies in nats; None where all examples have the same class."""
        shares = [count / self.examples for count in self.class_counts if count > 0]
        return -sum(share * math.log(share) for share in shares) if len(shares) > 1 else None

    @property
    def accuracy(self) -> float | None:
        """Share of the examples whose most probable class is the true class."""
        return self.positives / self.examples if self.examples else None

    @property
    def base_rate(self) -> float | None:
        """None: classes have no positives."""
        return None

    @property
    def fewest(self) -> float:
        """The weight of the examples."""
        return self.examples


MOMENTS: Final[Mapping[LabelKind, type[Moments]]] = {
    "binary": Moments,
    "regression": ValueMoments,
    "multiclass": ClassMoments,
}


def squared_errors(prediction_E: Floats, label_E: Labels) -> Doubles:
    """Computes the squared error of each example, (E,)."""
    return np.square(prediction_E.astype(np.float64) - label_E)


def class_losses(prediction_EC: Floats, label_E: Labels) -> Doubles:
    """Computes the log loss of each example's true class in nats, (E,), clipped as that of a binary label."""
    true_E = prediction_EC[np.arange(label_E.size), label_E].astype(np.float64)
    return np.asarray(-np.log(np.clip(true_E, CLIP, 1.0)))


def losses(kind: LabelKind, prediction: Floats, label_E: Labels) -> Doubles:
    """Computes the loss of each example by which a kind of label is scored, (E,)."""
    if kind == "binary":
        return log_losses(prediction, label_E)
    return squared_errors(prediction, label_E) if kind == "regression" else class_losses(prediction, label_E)


def label_moments(kind: LabelKind, classes: int, label_E: Labels, weight_E: Floats | None) -> Moments:
    """Sums labels alone, for the loss of the best constant prediction; a loss and a prediction count 0."""
    if kind == "binary":
        if weight_E is None:
            return Moments(label_E.size, int(np.count_nonzero(label_E)))
        # In float64, because float32 holds whole numbers up to 2^24 only.
        total, positives = weight_E.sum(dtype=np.float64), weight_E[label_E].sum(dtype=np.float64)
        return Moments(as_count(float(total)), as_count(float(positives)))
    if kind == "regression":
        return ValueMoments.from_predictions(label_E, label_E, weight_E)
    return ClassMoments.from_predictions(np.zeros((label_E.size, classes)), label_E, weight_E)


def as_counters(moments: Moments) -> dict[str, Any]:
    """Returns sums as JSON, for the counters of a commit."""
    return asdict(moments)


def from_counters(counted: Mapping[str, Any]) -> Moments:
    """Reads the sums that ``as_counters`` wrote; keys that are no sums are ignored. The sums say their kind."""
    kind: LabelKind = "binary"
    if "label_squares" in counted:
        kind = "regression"
    elif "class_counts" in counted:
        kind = "multiclass"
    cls = MOMENTS[kind]
    values = {field.name: counted[field.name] for field in fields(cls)}
    if kind == "multiclass":
        values["class_counts"] = tuple(values["class_counts"])
    return cls(**values)
