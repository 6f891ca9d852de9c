"""Defines the sections of a model that say how it is trained: optimizers, epochs, its start, and the gate."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from exfm.config.section import Section, SnapshotName, UtcTime
from exfm.interfaces.duration import microseconds_since_1970
from exfm.interfaces.table_optimizer import TableOptimizer


class RateSchedule(Section):
    """How the learning rate of the dense layers falls. It is constant without a schedule."""

    name: Literal["cosine", "linear", "inverse_sqrt"] = Field(
        description="cosine, linear: the rate falls to the floor in that many steps, and stays there. inverse_sqrt: it "
        "falls with the root of 1 / (1 + step / steps), to the floor."
    )
    steps: int = Field(gt=0, description="Steps of the fall, counted from the end of warmup.")
    floor: float = Field(0.1, ge=0, le=1, description="The lowest rate, as a fraction of lr; at 0 learning ends.")


class DenseOptimizer(Section):
    """The optimizer of all parameters but the embedding tables."""

    name: Literal["adam", "adamw", "adagrad", "sgd"] = Field("adam", description="Which of torch's optimizers.")
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    accumulate: int = Field(
        1, gt=0, description="Batches of a chunk whose mean gradient makes a step; tables step with every batch."
    )
    warmup: int | None = Field(
        None, gt=0, description="Steps in which the rate rises from 0 to lr, in equal increments; none by default."
    )
    schedule: RateSchedule | None = Field(
        None, description="How the rate falls after warmup; by default it is constant. Tables keep theirs."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of all dense gradients together: longer ones are scaled down to it."
    )
    ema: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay per step of an exponential moving average of the dense weights, which snapshots publish; "
        "training goes on with the weights themselves.",
    )


class OptimizerConfig(Section):
    """The optimizers: tables and dense layers need different learning rates."""

    dense: DenseOptimizer = Field(default_factory=DenseOptimizer, description="For the dense layers.")
    tables: TableOptimizer = Field(default_factory=TableOptimizer, description="For the embedding tables.")


class EpochsConfig(Section):
    """The first windows of the stream, on which a model trains several times before it goes on."""

    count: int = Field(gt=1, description="How many times it trains on each of these windows.")
    until: UtcTime = Field(description="A time (UTC): the windows that end at or before it.")

    @property
    def until_us(self) -> int:
        """Returns the time in microseconds since 1970."""
        return microseconds_since_1970(self.until)


class InitFrom(Section):
    """The model whose weights another model starts from."""

    run: str = Field("", description="The folder of its run; this run's where it is empty.")
    model: str = Field("", description="Its name there.")
    at: SnapshotName = Field(
        "", description="Its snapshot: a version, an alias or a time; the newest that knows no label of the start on."
    )
    path: str = Field("", description="Instead of a model: a safetensors file, any fsspec URL.")
    map: dict[str, str] = Field(
        default_factory=dict,
        description="Names that differ there: {HERE: THERE}, of tables, sequences and tasks, or of "
        "tensors from their beginning on.",
    )
    fresh: tuple[str, ...] = Field(
        (), description="Tensors that start anew, by name from its beginning on, such as backbone or heads.task_click."
    )

    @model_validator(mode="after")
    def _of_one_origin(self) -> InitFrom:
        if bool(self.model) == bool(self.path) or (self.path and self.run):
            raise ValueError("init_from: name a model, with run where it is in another folder, or a path")
        return self


class GateConfig(Section):
    """Limits of a window's figures, beyond which the snapshot after the window is held back from its readers."""

    windows: int = Field(
        8,
        gt=0,
        description="Published windows that a window is compared with; until there are half of them, only "
        "predecessor_tolerance holds.",
    )
    ne_tolerance: float | None = Field(
        0.1,
        gt=0,
        description="How far its NE may lie above the highest NE of those windows, as a share of it, or as far as the "
        "highest is above the lowest if that is more; null: any.",
    )
    predecessor_tolerance: float | None = Field(
        0.03,
        gt=0,
        description="How far its NE may lie above that of the newest published snapshot on the same rows, as a share; "
        "null: the two are not compared.",
    )
    compared_rows: int = Field(
        8_192, gt=0, description="Last rows of the window that both predict, at least: whole batches are."
    )
    calibration: tuple[float, float] = Field(
        (0.5, 2.0), description="The least and the greatest calibration: predicted over real positives."
    )
    min_labels: int = Field(
        100,
        gt=0,
        description="A task is judged where each of its labels has, or is predicted to have, so many examples.",
    )

    @classmethod
    def of_own_windows(cls) -> GateConfig:
        """Returns the gate of a model whose file says nothing of it: it costs nothing, and judges large windows alone.

        In windows with few labels a few users are most of the rows, and NE moves by more than the limits.
        """
        return cls(predecessor_tolerance=None, min_labels=1_000)

    @property
    def least_windows(self) -> int:
        """Returns how many published windows there must be to compare a window with: half, and at least two."""
        return min(self.windows, max(2, self.windows // 2))

    @field_validator("calibration")
    @classmethod
    def _around_1(cls, calibration: tuple[float, float]) -> tuple[float, float]:
        """Checks that a model which is right on average passes."""
        lowest, highest = calibration
        if not 0 <= lowest < 1 < highest:
            raise ValueError(
                f"calibration: 1, which is right on average, must lie between the two; given: {list(calibration)}"
            )
        return calibration
