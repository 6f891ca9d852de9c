"""Defines the types of the experiment file. Components appear by name; every other key is a described field."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from exfm.config.component_field import ComponentField, ComponentSpec
from exfm.interfaces.duration import Duration, parse_duration
from exfm.interfaces.parallel_plan import TableOptimizer

BackboneSpec = Annotated[ComponentSpec, ComponentField("backbone")]
EncoderSpec = Annotated[ComponentSpec, ComponentField("sequence_encoder")]
TransferSpec = Annotated[ComponentSpec, ComponentField("transfer_strategy")]
TeacherInputSpec = Annotated[ComponentSpec, ComponentField("teacher_input")]
SourceSpec = Annotated[ComponentSpec, ComponentField("data_source")]
PlanSpec = Annotated[ComponentSpec, ComponentField("parallel_plan")]

# Names are folders of a run and keys of overrides: no dot, slash or space.
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_-]*$"


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, arbitrary_types_allowed=True
    )


class StreamConfig(_Section):
    """The source of examples, and the cut of the stream into windows and chunks."""

    source: SourceSpec = Field(description="The data source.")
    window: Duration = Field(
        gt=timedelta(0), description="Length of a window: each is predicted, trained on and committed as a whole."
    )
    start: datetime | None = Field(
        None, description="Rows before this time (UTC) are not part of the stream; by default it begins with its first."
    )
    chunk_rows: int = Field(
        16_384, gt=0, description="Rows decoded at once and shared by all models; no batch spans two chunks."
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error", description="error: a row that breaks the schema stops the run. skip: it is left out and counted."
    )
    max_skipped_share: float = Field(
        0.4, gt=0, le=1, description="skip: the share of all rows, of 1,000 at least, that may be left out."
    )

    @field_validator("start")
    @classmethod
    def _in_utc(cls, start: datetime | None) -> datetime | None:
        """Reads a time without a zone as UTC, as all times of a run are."""
        if start is not None and start.tzinfo is None:
            return start.replace(tzinfo=UTC)
        return start


class EvaluationConfig(_Section):
    """Coverage of the overall figures."""

    skip: float = Field(
        0.0, ge=0, lt=1, description="Fraction of the stream, in whole windows, left out of the overall figures."
    )
    replicates: int = Field(2_000, ge=100, description="Bootstrap replicates behind each interval.")
    recall_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="Also compute recall@k inside groups, for each of these k; none by default."
    )


class Bucket(_Section):
    """A share of a column's values, chosen by their hash."""

    bucket: int | tuple[int, ...] = Field(description="The bucket, or buckets, that are kept.")
    of: int = Field(gt=1, description="How many buckets there are.")


# bool before int, because pydantic tries a union in order of exactness and then of position.
Scalar = bool | int | str
Condition = Bucket | tuple[Scalar, ...] | Scalar


class DenseOptimizer(_Section):
    """The optimizer of all parameters but the embedding tables."""

    name: Literal["adam", "adamw", "adagrad", "sgd"] = Field("adam", description="Which of torch's optimizers.")
    lr: float = Field(1e-3, gt=0, description="Learning rate.")
    weight_decay: float = Field(0.0, ge=0, description="Weight decay.")
    accumulate: int = Field(
        1, gt=0, description="Batches of a chunk whose mean gradient makes a step; tables step with every batch."
    )


class OptimizerConfig(_Section):
    """The optimizers: tables and dense layers need different learning rates."""

    dense: DenseOptimizer = Field(default_factory=DenseOptimizer, description="For the dense layers.")
    tables: TableOptimizer = Field(default_factory=TableOptimizer, description="For the embedding tables.")


class StateSource(_Section):
    """A vector of the model that states are read from."""

    model_config = ConfigDict(serialize_by_alias=True)

    vector: str = Field(
        alias="from",
        min_length=1,
        description="representation: the backbone's output; or a layer that the backbone names, such as layers.0.",
    )


class SupervisionConfig(_Section):
    """The supervision that a model writes for its students."""

    delay: Duration = Field(
        parse_duration("0s"),
        description="How much older than a window's start the snapshot is that labels it; 0s: the model's own forward.",
    )
    embedding: Literal["none", "float16", "int8"] = Field(
        "none", description="Also store its representation of each example, and how: int8 has a scale per example."
    )
    embedding_dim: int | None = Field(
        None, gt=0, description="Numbers that the stored representation is compressed to; by default it is whole."
    )
    states: dict[str, tuple[str, ...] | StateSource] = Field(
        default_factory=dict,
        description="Also store a compact state of entities: a categorical feature, and the features that describe it, "
        "or {from: representation}, the model's own vector of the example, compressed.",
    )
    rows: tuple[str, ...] = Field(
        (), description="Also store these features' table rows, as they are after training on the example's batch."
    )
    state_dim: int = Field(16, gt=0, description="Width of a state.")
    state_dtype: Literal["float16", "int8"] = Field(
        "float16", description="How states are stored: int8 has a scale per state, and half the bytes."
    )
    lag: Duration = Field(
        parse_duration("0s"),
        description="How long after an example its states and rows reach students; 0s, for the student's next example, "
        "is an upper bound of their benefit.",
    )

    @property
    def described(self) -> dict[str, tuple[str, ...]]:
        """Lists the features that describe each entity whose state is made of features."""
        return {entity: names for entity, names in self.states.items() if not isinstance(names, StateSource)}

    @property
    def read(self) -> dict[str, str]:
        """Names the vector of the model that the state of each other entity is read from."""
        return {entity: source.vector for entity, source in self.states.items() if isinstance(source, StateSource)}

    @model_validator(mode="after")
    def _compressed_where_stored(self) -> SupervisionConfig:
        if self.embedding_dim is not None and self.embedding == "none":
            raise ValueError(
                f"embedding_dim: {self.embedding_dim} numbers of a representation that is not stored; set embedding to "
                "float16 or int8, or leave embedding_dim out"
            )
        return self


class GateConfig(_Section):
    """Limits of a window's figures, beyond which the snapshot after the window is held back from its readers."""

    windows: int = Field(
        4, gt=0, description="Published windows that a window is compared with; until there are so many, none is held."
    )
    ne_tolerance: float = Field(
        0.1, gt=0, description="How far its NE may lie above the mean NE of those windows, as a share of the mean."
    )
    calibration: tuple[float, float] = Field(
        (0.5, 2.0), description="The least and the greatest calibration: predicted over real positives."
    )
    min_labels: int = Field(
        100,
        gt=0,
        description="A task is judged where each of its labels has, or is predicted to have, so many examples.",
    )

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


class ModelConfig(_Section):
    """A model of the experiment: an FM, a VM, or anything between."""

    @model_validator(mode="before")
    @classmethod
    def _lookups_are_inputs(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and fields.get("lookups"):
            entries = [f"{{name: latest_state, teacher: {teacher}}}" for teacher in fields["lookups"]]
            raise ValueError(
                f"lookups: exfm 0.1 had this; write inputs: [{', '.join(entries)}], with entities: [...] for some of "
                "the teacher's states"
            )
        return fields

    backbone: BackboneSpec = Field(description="The interaction architecture.")
    sequence_encoder: EncoderSpec | None = Field(
        None, description="Summarises each sequence; without it, a sequence is averaged like a multi-valued feature."
    )
    features: tuple[str, ...] | None = Field(None, description="The features it sees; all of them by default.")
    where: dict[str, Condition] = Field(
        default_factory=dict, description="The traffic it sees: a value, values, or {bucket, of} per column."
    )
    tasks: tuple[str, ...] | None = Field(None, description="The labels it predicts; all of them by default.")
    embedding_dim: int = Field(16, gt=0, multiple_of=4, description="Width of tokens and of every table's rows.")
    embedding_init: float = Field(0.05, gt=0, description="Standard deviation of a new table row.")
    dense_tokens: int = Field(1, gt=0, description="Tokens made of the dense features together.")
    head_hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field((), description="Hidden layers of each task's head.")
    transfer: tuple[TransferSpec, ...] = Field((), description="How it learns from its teachers.")
    inputs: tuple[TeacherInputSpec, ...] = Field(
        (), description="Stored vectors of teachers that are an input; each entity costs a lookup at serving."
    )
    control: bool | str = Field(
        False,
        description="true: also train it without transfer on the same batches, as NAME.control, to measure the gain. A "
        "name: measure the gain over another model, or another's control, on the examples that both predict.",
    )
    init_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of its initial weights; by default models of equal shape start from equal weights.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: encoders and backbone compute in bfloat16; weights, tables and heads stay in fp32."
    )
    activation_checkpointing: bool = Field(
        False, description="Blocks keep their inputs only and are computed again in backward: less memory, more time."
    )
    batch_size: int = Field(512, gt=0, description="Largest batch; a chunk is cut into equal batches of at most this.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Its optimizers.")
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig, description="As a teacher.")
    gate: GateConfig | None = Field(
        None, description="{}: hold a window's snapshot back where its figures are bad; by default all are published."
    )


class PredictionColumn(_Section):
    """A column of predictions that another system made."""

    column: str = Field(description="The column's name.")
    kind: Literal["probability", "logit"] = Field(description="The scale of its numbers.")


class ExternalTeacher(_Section):
    """A teacher from elsewhere: its supervision is in Parquet files."""

    path: str = Field(description="A file, a folder of files, or a glob; any fsspec URL.")
    example_id: str = Field("example_id", description="The column of example ids.")
    predictions: dict[str, PredictionColumn] = Field(min_length=1, description="The column of each task it predicts.")


class ComparedPair(_Section):
    """Two models whose predictions of the same examples are compared."""

    model: str = Field(description="The model; a control is called NAME.control.")
    baseline: str = Field(description="The model that it is compared with.")
    task: str | None = Field(
        None, description="The label to compare them on; every label that both predict by default."
    )


class PluginsConfig(_Section):
    """Selection of the plugins that may be loaded."""

    block: tuple[str, ...] = Field((), description="Plugins or distributions that are never imported.")


def _check_not_empty(models: Any) -> Any:
    # Before validation, because pydantic's message for an empty mapping would not say this.
    if isinstance(models, dict) and not models:
        raise ValueError("an experiment needs at least one model")
    return models


ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class ExperimentConfig(_Section):
    """An experiment file."""

    name: str = Field(pattern=NAME_PATTERN, description="The experiment's name.")
    seed: int = Field(0, ge=0, description="Seed of every initialisation.")
    run_dir: str = Field("", description="Where the run is kept, any fsspec URL; runs/NAME where this is empty.")
    plugins: PluginsConfig = Field(default_factory=PluginsConfig, description="Which plugins may be loaded.")
    save_in_background: bool = Field(
        False,
        description="Write a window's files while the next window trains, from a second copy of the weights in memory; "
        "not where a model reads another's snapshots.",
    )
    stream: StreamConfig = Field(description="The stream of examples.")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="Coverage of the figures.")
    models: Annotated[dict[ModelName, ModelConfig], BeforeValidator(_check_not_empty)] = Field(
        description="The models, by name."
    )
    teachers: dict[ModelName, ExternalTeacher] = Field(
        default_factory=dict, description="Teachers from elsewhere, by name."
    )
    compare: tuple[ComparedPair, ...] = Field(
        (), description="Models that are compared with others, on the examples that both predict."
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="Written by a run, not read: versions of exfm, torch and the plugins."
    )
    components: dict[str, str] = Field(
        default_factory=dict, description="Written by a run, not read: a hash of the code of every component it names."
    )
    parallel: PlanSpec = Field(description="How each model is spread over processes.")
