"""Defines the types of the experiment file. Components appear by name; every other key is a described field."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from exfm.config.component_field import ComponentField, ComponentSpec
from exfm.config.keep_section import KeepConfig
from exfm.config.search_section import SearchSection
from exfm.config.section import NAME_PATTERN, Section, SnapshotName, UtcTime
from exfm.config.supervision_section import SupervisionConfig
from exfm.config.training_sections import EpochsConfig, GateConfig, InitFrom, OptimizerConfig
from exfm.interfaces.duration import Duration

BackboneSpec = Annotated[ComponentSpec, ComponentField("backbone")]
EncoderSpec = Annotated[ComponentSpec, ComponentField("sequence_encoder")]
TransferSpec = Annotated[ComponentSpec, ComponentField("transfer_strategy")]
TeacherInputSpec = Annotated[ComponentSpec, ComponentField("teacher_input")]
HeadSpec = Annotated[ComponentSpec, ComponentField("task_head")]
MetricSpec = Annotated[ComponentSpec, ComponentField("metric")]
SourceSpec = Annotated[ComponentSpec, ComponentField("data_source")]
TrackerSpec = Annotated[ComponentSpec, ComponentField("tracker")]
PlanSpec = Annotated[ComponentSpec, ComponentField("parallel_plan")]
LauncherSpec = Annotated[ComponentSpec, ComponentField("launcher")]


class StreamConfig(Section):
    """The source of examples, and the cut of the stream into windows and chunks."""

    source: SourceSpec = Field(description="The data source.")
    window: Duration = Field(
        gt=timedelta(0), description="Length of a window: each is predicted, trained on and committed as a whole."
    )
    start: UtcTime | None = Field(
        None, description="Rows before this time (UTC) are not part of the stream; by default it begins with its first."
    )
    allowed_lateness: Duration = Field(
        timedelta(0),
        ge=timedelta(0),
        description="How much newer the newest row is when a job that follows the stream takes a window for complete. "
        "Rows that come later still are counted and set aside.",
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


class EvaluationConfig(Section):
    """Coverage of the overall figures."""

    skip: float = Field(
        0.0, ge=0, lt=1, description="Fraction of the stream, in whole windows, left out of the overall figures."
    )
    replicates: int = Field(2_000, ge=100, description="Bootstrap replicates behind each interval.")
    recall_at: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (), description="Also compute recall@k inside groups, for each of these k; none by default."
    )
    metrics: tuple[MetricSpec, ...] = Field(
        (), description="Further figures of each task whose kind of label they are for; none by default."
    )


class Bucket(Section):
    """A share of a column's values, chosen by their hash."""

    bucket: int | tuple[int, ...] = Field(description="The bucket, or buckets, that are kept.")
    of: int = Field(gt=1, description="How many buckets there are.")


# bool before int, because pydantic tries a union in order of exactness and then of position.
Scalar = bool | int | str
Condition = Bucket | tuple[Scalar, ...] | Scalar


class ModelConfig(Section):
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
    heads: dict[str, HeadSpec] = Field(
        default_factory=dict,
        description="The loss and the prediction of a task, by task; by default cross-entropy of a binary label, and "
        "the default head of the label's kind.",
    )
    transfer: tuple[TransferSpec, ...] = Field((), description="How it learns from its teachers.")
    inputs: tuple[TeacherInputSpec, ...] = Field(
        (), description="Stored vectors of teachers that are an input; each entity costs a lookup at serving."
    )
    control: bool | str = Field(
        False,
        description="true: also train it without transfer on the same batches, as NAME.control, to measure the gain. A "
        "name: measure the gain over another model, or another's control, on the examples that both predict.",
    )
    start: UtcTime | None = Field(
        None, description="Windows that begin before this time (UTC) are not the model's; by default it has them all."
    )
    init_from: InitFrom | None = Field(
        None,
        description="The model that it starts from, by default in the window after that model's newest snapshot; see "
        "start.",
    )
    init_seed: int | None = Field(
        None,
        ge=0,
        description="Seed of its initial weights; by default models of equal shape start from equal weights.",
    )
    precision: Literal["fp32", "bf16", "fp8"] = Field(
        "fp32",
        description="bf16: encoders and backbone compute in bfloat16; weights, tables and heads stay in fp32. fp8: in "
        "training their linear layers multiply in 8 bits, all else as with bf16; needs a GPU of capability 8.9.",
    )
    compile: bool = Field(
        False, description="Blocks are compiled by torch.compile in training; the first batches take minutes."
    )
    activation_checkpointing: bool = Field(
        False, description="Blocks keep their inputs only and are computed again in backward: less memory, more time."
    )
    batch_size: int = Field(512, gt=0, description="Largest batch; a chunk is cut into equal batches of at most this.")
    epochs: EpochsConfig | None = Field(
        None,
        description="Train on the first windows of the stream several times; figures count the windows after them. By "
        "default it goes through the stream once.",
    )
    late_labels: Literal["each", "together"] = Field(
        "each",
        description="each: a row is trained on again whenever a label with a delay has become known. together: a "
        "single time for all its labels with a delay, when the last of the model's tasks is known.",
    )
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Its optimizers.")
    supervision: SupervisionConfig = Field(default_factory=SupervisionConfig, description="As a teacher.")
    gate: GateConfig | None = Field(
        default_factory=GateConfig.of_own_windows,
        description="Holds a window's snapshot back where its figures are bad, by default of those before it; {}: also "
        "where the newest published snapshot predicts better; null: all are published.",
    )
    keep: KeepConfig = Field(default_factory=KeepConfig, description="How long its files stay in the run's folder.")


class PredictionColumn(Section):
    """A column of predictions that another system made."""

    column: str = Field(description="The column's name.")
    kind: Literal["probability", "logit", "value"] = Field(
        description="The scale of its numbers; value: expected values of a regression label, in its unit."
    )


class ExternalTeacher(Section):
    """A teacher from elsewhere: its supervision is in Parquet files."""

    path: str = Field(description="A file, a folder of files, or a glob; any fsspec URL.")
    example_id: str = Field("example_id", description="The column of example ids.")
    predictions: dict[str, PredictionColumn] = Field(min_length=1, description="The column of each task it predicts.")


class RunTeacher(Section):
    """A teacher that another run trains."""

    run: str = Field(min_length=1, description="The folder of the run; any fsspec URL.")
    model: str = Field(pattern=NAME_PATTERN, description="The model's name there.")
    at: SnapshotName = Field(
        "",
        description="A version, an alias or a time: that snapshot alone labels this run's stream; by default the "
        "model teaches as it goes on.",
    )


def _teacher_tag(section: Any) -> str:
    """Chooses the type of a teacher's section: a section with a run is of another run."""
    if isinstance(section, RunTeacher) or (isinstance(section, dict) and "run" in section):
        return "of another run"
    return "of files"


TeacherSection = Annotated[
    Annotated[ExternalTeacher, Tag("of files")] | Annotated[RunTeacher, Tag("of another run")],
    Discriminator(_teacher_tag),
]


class ComparedPair(Section):
    """Two models whose predictions of the same examples are compared."""

    model: str = Field(description="The model; a control is called NAME.control.")
    baseline: str = Field(description="The model that it is compared with.")
    task: str | None = Field(
        None, description="The label to compare them on; every label that both predict by default."
    )


class PluginsConfig(Section):
    """Selection of the plugins that may be loaded."""

    block: tuple[str, ...] = Field((), description="Plugins or distributions that are never imported.")


def _check_not_empty(models: Any) -> Any:
    # Before validation, because pydantic's message for an empty mapping would not say this.
    if isinstance(models, dict) and not models:
        raise ValueError("an experiment needs at least one model")
    return models


ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class ExperimentConfig(Section):
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
    teachers: dict[ModelName, TeacherSection] = Field(
        default_factory=dict, description="Teachers that this file does not train, by name."
    )
    compare: tuple[ComparedPair, ...] = Field(
        (), description="Models that are compared with others, on the examples that both predict."
    )
    trackers: tuple[TrackerSpec, ...] = Field(
        (), description="Systems that receive the figures of committed windows while jobs run; none by default."
    )
    versions: dict[str, str] = Field(
        default_factory=dict, description="Written by a run, not read: versions of exfm, torch and the plugins."
    )
    components: dict[str, str] = Field(
        default_factory=dict, description="Written by a run, not read: a hash of the code of every component it names."
    )
    search: SearchSection | None = Field(None, description="What `exfm search` searches.")
    parallel: PlanSpec = Field(description="How each model is spread over processes.")
    launcher: LauncherSpec | None = Field(
        None,
        description="The engine of `exfm up`, the packing of models into jobs, and the needs of a job; no result "
        "depends on it.",
    )

    @property
    def external_teachers(self) -> dict[str, ExternalTeacher]:
        """Returns the teachers whose predictions are in files, by name."""
        return {name: section for name, section in self.teachers.items() if isinstance(section, ExternalTeacher)}

    def external_tasks(self) -> dict[str, tuple[str, ...]]:
        """Returns the tasks that each teacher from elsewhere predicts, by its name."""
        return {name: tuple(teacher.predictions) for name, teacher in self.external_teachers.items()}

    @property
    def run_teachers(self) -> dict[str, RunTeacher]:
        """Returns the teachers that other runs train, by name."""
        return {name: section for name, section in self.teachers.items() if isinstance(section, RunTeacher)}
