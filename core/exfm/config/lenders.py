"""Reads models of other runs, which teach an experiment's models or start them, from the records that runs keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import fsspec
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from exfm.config.checks import Arm
from exfm.config.experiment import ModelConfig, RunTeacher
from exfm.config.run_files import MODELS_FOLDER, draft_file, record_file, recorded_names
from exfm.errors import ConfigError, NotYetError, suggestion
from exfm.interfaces.schema import FeatureSchema
from exfm.registry.registry import Registry

RECORD_FORMAT = 1


@dataclass(frozen=True)
class Lender:
    """A model of another run, as a teacher or as the model that another starts from.

    Attributes:
        run: the folder of its run.
        model: its name there.
        arm: the model under the name that it has in this experiment.
        schema: the columns that it reads.
        digest: the checksum of its identity.
        window: the length of its windows, as its experiment file writes it.
        at: the snapshot at which it is frozen, as the experiment file names it; empty of a teacher that goes on.
    """

    run: str
    model: str
    arm: Arm
    schema: FeatureSchema
    digest: str
    window: str
    at: str = ""


def read_lender(teacher: RunTeacher, registry: Registry, key_path: str, name: str = "") -> Lender:
    """Reads a model of another run.

    Args:
        key_path: file and key that name it, for messages.
        name: its name in this experiment; its own by default.

    Raises:
        NotYetError: there is no such run or model.
        ConfigError: the run cannot be read, or a component that the model needs is not installed.
    """
    return _lender(name or teacher.model, teacher, _read_record(teacher, key_path), registry, key_path)


def _read_record(teacher: RunTeacher, key_path: str) -> dict[str, Any]:
    """Reads a model's record: that of its commits, or the draft of a model without commits."""
    try:
        fs, root = fsspec.core.url_to_fs(teacher.run)
        # Not from a cache, because the run may have begun a moment ago.
        fs.invalidate_cache()
        for path in (record_file(teacher.model), draft_file(teacher.model)):
            try:
                record = json.loads(fs.cat_file(f"{root.rstrip('/')}/{path}"))
            except FileNotFoundError:
                continue
            if record["format"] != RECORD_FORMAT:
                raise ConfigError(
                    f"{key_path}.run: {teacher.run}/{path} has format {record['format']}; this version of exfm reads "
                    f"format {RECORD_FORMAT}"
                )
            assert isinstance(record, dict)
            return record
        files = fs.ls(f"{root.rstrip('/')}/{MODELS_FOLDER}", detail=False)
        models = recorded_names(str(path).rpartition("/")[2] for path in files)
    except FileNotFoundError:
        models = set()
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"{key_path}.run: {teacher.run!r} cannot be read: {error}") from error
    if not models:
        raise NotYetError(
            f"{key_path}.run: {teacher.run!r} holds no run, or a run of exfm 0.1. Train {teacher.model!r} first: `exfm "
            f"train CONFIG --model {teacher.model}` with run_dir={teacher.run}"
        )
    raise NotYetError(
        f"{key_path}.model: the run {teacher.run!r} has no model {teacher.model!r}.{suggestion(teacher.model, models)}"
    )


def _lender(name: str, teacher: RunTeacher, record: Mapping[str, Any], registry: Registry, key_path: str) -> Lender:
    """Builds the description of a teacher from its record."""
    stream, section = record["identity"]["stream"], record["identity"]["model"]
    try:
        # References to environment variables are resolved here, as they were where the model is trained.
        section = OmegaConf.to_container(OmegaConf.create(section), resolve=True)
        config = ModelConfig.model_validate(section, context={"registry": registry})
    except (ValidationError, OmegaConfBaseException) as error:
        detail = " ".join(str(error).split())
        raise ConfigError(
            f"{key_path}: the model {teacher.model!r} of {teacher.run!r} cannot be described with the plugins that are "
            f"installed here: {detail}"
        ) from error
    features = [stream["features"][feature] for feature in stream["order"]]
    # A column that the stream does not have is null in an identity, so that its field counts as absent.
    present = {key: column for key, column in stream["columns"].items() if column is not None}
    columns = present | {"features": features, "labels": list(stream["labels"].values())}
    schema = FeatureSchema.model_validate(columns)
    tasks = tuple(record["tasks"])
    arm = Arm(name, name, config, tasks, (), stores=bool(record["stores"]), labels=schema.labels_of(tasks))
    return Lender(teacher.run, teacher.model, arm, schema, record["digest"], stream["window"], teacher.at)
