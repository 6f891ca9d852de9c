"""Lists the models of a run's folder, with their teachers, and the folders in which their commits are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import (
    CONFIG_FILE,
    CONTROL_SUFFIX,
    FROZEN_FILE,
    HOMES_FILE,
    MODELS_FOLDER,
    draft_file,
    home_url,
    record_file,
    recorded_names,
)
from exfm.errors import ConfigError
from exfm.redaction import without_credentials
from exfm.storage.commits import CommitLog
from exfm.storage.workspace import Workspace

_NO_DELAY = "0s"
"""The delay of a teacher that labels while it trains, as a resolved config writes it."""


@dataclass(frozen=True)
class WatchedModel:
    """Describes a model of a run, or a teacher of its models that another run trains.

    Attributes:
        control: the model that it is compared with, if any.
        teachers: the names that it learns from; those of files with predictions are no models.
        trained: the commits of its training, and its name there.
        labelled: the commits of its supervision, and its name there; None of a model that nobody learns from.
        trained_in: the run that trains it, if it is another.
        labels_later: whether a job labels with its snapshots, which is not the job that trains it.
        is_frozen: whether a single snapshot of another run labels for this run.
    """

    name: str
    control: str | None
    teachers: tuple[str, ...]
    trained: tuple[CommitLog, str]
    labelled: tuple[CommitLog, str] | None
    trained_in: str = ""
    labels_later: bool = False
    is_frozen: bool = False


class RunFolder:
    """Reads which models a run has, and keeps their commit logs open between two looks.

    Args:
        url: the folder, any fsspec URL.

    Raises:
        ConfigError: the folder holds no run.
    """

    def __init__(self, url: str) -> None:
        self.url = without_credentials(url.rstrip("/"))
        self.workspace = Workspace(url)
        self._run_dir = url
        self._folders: dict[str, Workspace] = {}
        self._logs: dict[tuple[str, str], CommitLog] = {}
        self._sections: dict[str, Mapping[str, Any]] = {}
        self._parsed: tuple[bytes, Mapping[str, Any]] = (b"", {})
        self.config()

    def config(self) -> Mapping[str, Any]:
        """Reads the run's resolved config, which the last job of any file has written.

        Raises:
            ConfigError: there is none.
        """
        try:
            text = self.workspace.read(CONFIG_FILE)
        except FileNotFoundError as error:
            raise ConfigError(f"{self.url}: no {CONFIG_FILE} here; `exfm run` writes it into a run's folder") from error
        # Compared as bytes, because every look reads it, and a config of hundreds of models takes long to parse.
        if text != self._parsed[0]:
            self._parsed = text, parse_resolved(text.decode())
        return self._parsed[1]

    def homes(self) -> dict[str, tuple[str, str]]:
        """Reads the folders and names of the models that other runs train."""
        homes: dict[str, tuple[str, str]] = {}
        for name, home in self._optional_json(HOMES_FILE, {}).items():
            homes[name] = (home_url(self._run_dir, home["run"]), home["model"])
        return homes

    def folders(self) -> dict[str, Workspace]:
        """Opens the folders of this run and of those that train its teachers, by URL."""
        opened = {self.url: self.workspace}
        for run, _ in self.homes().values():
            opened[without_credentials(run.rstrip("/"))] = self._folder(run)
        return opened

    def models(self) -> list[WatchedModel]:
        """Lists the models of the config, those of other files in the folder, and their teachers of other runs."""
        config = self.config()
        sections = _with_controls(config["models"]) | self._recorded(config["models"])
        homes = self.homes()
        frozen: dict[str, str] = {}
        for entry in self._optional_json(FROZEN_FILE, []):
            frozen[entry["teacher"]] = f"{entry['teacher']}@{entry['version']}"
        taught: set[str] = set()
        for section in sections.values():
            taught.update(teachers_of(section))
        models: list[WatchedModel] = []
        # Teachers that other runs train have no section here.
        for name in (*sections, *(name for name in homes if name not in sections)):
            section = sections.get(name, {})
            stores = name in taught or bool(section.get("supervision", {}).get("store"))
            models.append(self._model(name, section, homes.get(name), frozen.get(name), stores))
        return models

    def forget(self, model: WatchedModel) -> None:
        """Forgets the commits of a model that were read before, because a repair or a later job has removed some.

        The next ``models`` opens new logs.
        """
        for log in (model.trained, model.labelled):
            if log is not None:
                self._logs.pop((log[0].workspace.url, log[1]), None)

    def _model(
        self, name: str, section: Mapping[str, Any], home: tuple[str, str] | None, stored_as: str | None, stores: bool
    ) -> WatchedModel:
        run, trained_as = home or ("", name)
        workspace = self._folder(run) if run else self.workspace
        labelled = None
        if stored_as is not None:
            labelled = (self._log(self.workspace, stored_as), stored_as)
        elif stores:
            labelled = (self._log(workspace, trained_as), trained_as)
        control = section.get("control")
        return WatchedModel(
            name=name,
            control=f"{name}{CONTROL_SUFFIX}" if control is True else control or None,
            teachers=teachers_of(section),
            trained=(self._log(workspace, trained_as), trained_as),
            labelled=labelled,
            labels_later=stored_as is not None or section.get("supervision", {}).get("delay", _NO_DELAY) != _NO_DELAY,
            trained_in=without_credentials(run.rstrip("/")),
            is_frozen=stored_as is not None,
        )

    def _recorded(self, models: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """Reads the sections of the models of other experiment files that share the folder."""
        described = _with_controls(models)
        sections: dict[str, Mapping[str, Any]] = {}
        names = self.workspace.names(MODELS_FOLDER)
        for name in sorted(recorded_names(names) - described.keys()):
            # Of a record of a model with commits nothing changes that is read here.
            if name not in self._sections:
                has_commits = record_file(name) in {f"{MODELS_FOLDER}/{file}" for file in names}
                record = self._optional_json(record_file(name) if has_commits else draft_file(name), None)
                if record is None:
                    continue
                self._sections[name] = {**record["identity"]["model"], "control": False}
            sections[name] = self._sections[name]
        recorded = recorded_names(names)
        for name, section in sections.items():
            # An identity does not say that its model has a control; the control's record does.
            if f"{name}{CONTROL_SUFFIX}" in recorded:
                sections[name] = {**section, "control": True}
        return sections

    def _optional_json(self, path: str, absent: Any) -> Any:
        try:
            return self.workspace.read_json(path)
        except FileNotFoundError:
            return absent

    def _folder(self, run: str) -> Workspace:
        if run not in self._folders:
            self._folders[run] = Workspace(run)
        return self._folders[run]

    def _log(self, workspace: Workspace, model: str) -> CommitLog:
        """Opens the commits of a model; a log for each, because a log keeps the newest manifests of few."""
        key = (workspace.url, model)
        if key not in self._logs:
            self._logs[key] = CommitLog(workspace)
        return self._logs[key]


def teachers_of(section: Mapping[str, Any]) -> tuple[str, ...]:
    """Lists the teachers of a model's section, each once, in the order of the file."""
    teachers: list[str] = []
    for entry in (*section.get("transfer", ()), *section.get("inputs", ())):
        teachers += [entry["teacher"], *_fallback(entry)]
    return tuple(dict.fromkeys(teachers))


def _fallback(entry: Mapping[str, Any]) -> Iterable[str]:
    fallback = entry.get("fallback") or ()
    return [fallback] if isinstance(fallback, str) else fallback


def _with_controls(models: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Adds the section of each control that ``control: true`` stands for: the model's, without teachers."""
    sections: dict[str, Mapping[str, Any]] = {}
    for name, section in models.items():
        sections[name] = section
        if section["control"] is True:
            sections[f"{name}{CONTROL_SUFFIX}"] = {**section, "transfer": (), "inputs": (), "control": False}
    return sections
