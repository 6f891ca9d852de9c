"""Metric: a figure of predictions and labels, as sums that add up over the windows of a stream.

Legend: E examples, W numbers of a prediction, S sums.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from exfm.interfaces.component import Component, ComponentConfig
from exfm.interfaces.schema import LABEL_KINDS, LabelKind

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricRows:
    """Holds labelled examples of a window, in the order of the stream.

    Attributes:
        prediction: (E,) a probability or an expected value; of a multiclass label (E, W), a probability per class.
        label_E: 0 or 1, a number, or the number of a class.
        weight_E: the weight of each example.
        group_E: int64, equal for the examples of a group, as a rule of a user.
    """

    prediction: Doubles
    label_E: Doubles
    weight_E: Doubles
    group_E: npt.NDArray[np.int64]


class Metric(Component):
    """Computes a figure of the predictions of a task, overall and for each window.

    It is a function of sums of constant number, so that a stream of any length takes the memory of a window.

    Attributes:
        label_kinds: the kinds of label that it is a figure of; other tasks have none.
    """

    kind: ClassVar[str] = "metric"
    label_kinds: ClassVar[frozenset[LabelKind]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        kinds: frozenset[str] = getattr(cls, "label_kinds", frozenset())
        if hasattr(cls, "name") and not (kinds and kinds <= LABEL_KINDS):
            raise TypeError(
                f"{cls.__qualname__}.label_kinds must name kinds of label: {', '.join(sorted(LABEL_KINDS))}"
            )

    def __init__(self, config: ComponentConfig) -> None:
        self.config = config

    @property
    def title(self) -> str:
        """Names the figure in results.json and tables: the component's name, and what tells two of it apart."""
        return self.name

    @abstractmethod
    def sums(self, rows: MetricRows) -> Doubles:
        """Returns the sums (S,) over some examples, at least 1; those of more examples are added to them."""

    @abstractmethod
    def value(self, sums_S: Doubles) -> float | None:
        """Returns the figure; None where it has no meaning."""
