"""Searches the parameters of a model: trials of every arm, then the chosen trials again on fresh seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import xxhash

from exfm.bookkeeping.progress import Progress
from exfm.config.loading import Experiment, load_experiment
from exfm.config.search_section import SearchSection
from exfm.data.source_errors import source_errors
from exfm.data.windows import stream_windows
from exfm.errors import ConfigError
from exfm.interfaces.data_source import Window
from exfm.reporting.seeds import gain_interval
from exfm.search.arms import SearchedArm, first_task, searched_arms
from exfm.search.gain import GainOverTime
from exfm.search.serving_cost import serving_cost
from exfm.search.space import Values, file_values, grid_size, label, overrides
from exfm.search.study import ArmStudy, StudySettings, TrialResult, import_optuna
from exfm.search.trial_run import remove_snapshots, train_windows
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store

SEARCH_FILE, JOURNAL_FILE, SETTINGS_FILE = "search.json", "journal.log", "settings.json"

OnTrial = Callable[[SearchedArm, TrialResult], None]


@dataclass
class Search:
    """A search that has been checked; nothing has run yet.

    Args:
        config: the experiment file.
        common_overrides: ``key=value`` for all trials.
        block: plugins that must not be imported.
        on_progress: called after every chunk of rows.
        on_window: called after every window.

    Raises:
        ConfigError: the file has no section ``search``, or anything in it is wrong.
    """

    config: str | Mapping[str, Any]
    common_overrides: Sequence[str] = ()
    block: Sequence[str] = ()
    on_progress: Callable[[Progress], None] = field(default=lambda _: None)
    on_window: Callable[[Progress], None] = field(default=lambda _: None)

    def __post_init__(self) -> None:
        self.base = load_experiment(self.config, self.common_overrides, block=self.block)
        self.where = self.config if isinstance(self.config, str) else "experiment"
        if self.base.config.search is None:
            raise ConfigError(f"{self.where}: there is no section search; see docs/run/search.md")
        self.section: SearchSection = self.base.config.search
        self.folder = f"{self.base.run_dir.rstrip('/')}/search"
        if not Workspace(self.folder).is_local:
            raise ConfigError(
                f"{self.where}: run_dir: a search keeps its trials in a local folder; given: {self.folder}"
            )
        self.arms = searched_arms(self.base, self.section, self._load_values, self.where)
        self.first = file_values(self.section.parameters, self.base.as_dict(), self.where)
        self.task = first_task(self.student.arm, self.section, self.where)
        for arm in self.arms:
            # An arm that does not predict the student's task has no gain to compare.
            first_task(arm.arm, self.section.model_copy(update={"task": self.task}), self.where)
        _ = self.tuning  # fails before anything runs if the stream is too short

    @property
    def student(self) -> SearchedArm:
        """The arm whose gain is searched."""
        return next(arm for arm in self.arms if arm.role == "student")

    @property
    def control(self) -> SearchedArm:
        """The arm that the gain is measured against."""
        return next(arm for arm in self.arms if arm.role == "control")

    @cached_property
    def windows(self) -> list[Window]:
        """The windows of the stream."""
        with source_errors():
            return list(stream_windows(self.base.source, self.base.config.stream.window))

    @cached_property
    def tuning(self) -> list[Window]:
        """The windows that trials read: all but the last, which are held out."""
        held_out = max(1, math.ceil(self.section.holdout * len(self.windows)))
        tuning = self.windows[:-held_out]
        if len(tuning) < 2:
            raise ConfigError(
                f"{self.where}: search.holdout: of {len(self.windows)} windows {held_out} are held out, and fewer than "
                "two are left for trials: shorten stream.window, or hold out less"
            )
        return tuning

    def run(self, on_trial: OnTrial = lambda arm, result: None) -> dict[str, Any]:
        """Runs the trials and the fresh seeds that are not there yet, and writes search.json.

        Returns:
            The content of search.json.

        Raises:
            ConfigError: the folder holds another search, or the first trial is refused.
            RunError: no trial of an arm is complete, or a committed file is damaged.
        """
        workspace = Workspace(self.folder)
        self._bind(workspace)
        studies = {arm.name: self._study(arm) for arm in self.arms}
        for arm in self.arms:
            studies[arm.name].run(self._trainer(arm), partial(self._end_trial, arm, on_trial))
        best = {name: study.best for name, study in studies.items()}
        summary = self._summary(studies, best, self._fresh_seeds(best))
        workspace.write_json(SEARCH_FILE, summary)
        return summary

    def _end_trial(self, arm: SearchedArm, on_trial: OnTrial, result: TrialResult) -> None:
        remove_snapshots(f"{self.folder}/{_trial_folder(arm, result.number)}")
        on_trial(arm, result)

    def _bind(self, workspace: Workspace) -> None:
        """Binds the folder to the search, because trials of other searches do not compare."""
        settings = self._settings()
        if workspace.exists(SETTINGS_FILE):
            before = workspace.read_json(SETTINGS_FILE)
            changed = [key for key in settings if before.get(key) != settings[key]]
            if changed:
                raise ConfigError(
                    f"{self.folder}: this folder holds another search: {', '.join(changed)} changed. Give another "
                    "run_dir, or remove the folder"
                )
        else:
            workspace.write_json(SETTINGS_FILE, settings)

    def _settings(self) -> dict[str, Any]:
        """Describes everything that trials depend on, of JSON's types."""
        resolved = self.base.as_dict()
        section = resolved.pop("search")
        # These keys do not change the trials, and an upgrade must not end a search.
        for key in ("run_dir", "versions", "components", "plugins"):
            resolved.pop(key, None)
        experiment = xxhash.xxh3_128_hexdigest(json.dumps(resolved, sort_keys=True).encode())
        # Trials and seeds may be added.
        kept = {f"search.{key}": value for key, value in section.items() if key not in ("trials", "seeds")}
        # As it is read back later, when tuples have become lists.
        described: dict[str, Any] = json.loads(json.dumps({"the experiment": experiment, **kept}))
        return described

    def _study(self, arm: SearchedArm) -> ArmStudy:
        optuna = import_optuna()
        backend = optuna.storages.journal.JournalFileBackend(str(Path(Workspace(self.folder).path(JOURNAL_FILE))))
        settings = StudySettings(self.section.trials, self.section.pruner, self.section.warmup, self.base.config.seed)
        # Of the file as it is: a search must not buy its gain with a dearer model.
        limit = serving_cost(self.base, arm.name)

        def too_dear(values: Values) -> str:
            try:
                cost = serving_cost(self._load_values(overrides(values)), arm.name)
            except ConfigError:
                return ""  # the trial fails with this error
            return cost.excess(limit, self.section.serving_cost)

        return ArmStudy(
            arm.name,
            arm.parameters,
            {key: self.first[key] for key in arm.parameters},
            settings,
            optuna.storages.JournalStorage(backend),
            too_dear,
        )

    def _trainer(self, arm: SearchedArm) -> Callable[[int, Values], Iterator[float | None]]:
        """Returns the function that trains a trial and yields its gain over the first trial of the control."""
        reference = Store(f"{self.folder}/{_trial_folder(self.control, 0)}"), self.control.name
        # The first windows do not count, as in an evaluation; at least the last does.
        scored = self.tuning[min(int(self.base.config.evaluation.skip * len(self.tuning)), len(self.tuning) - 1)]

        def train(number: int, values: Values) -> Iterator[float | None]:
            gain: GainOverTime | None = None
            folder = _trial_folder(arm, number)
            for store in self._train(arm, values, folder, len(self.tuning)):
                # Once, because the sums of the windows go on from step to step.
                if gain is None:
                    span = scored.start_us, self.tuning[-1].end_us
                    gain = GainOverTime((store, arm.name), reference, self.task, *span)
                yield gain.update()

        return train

    def _train(
        self, arm: SearchedArm, values: Values, folder: str, windows: int, more: Sequence[str] = ()
    ) -> Iterator[Store]:
        def load(inside: str) -> Experiment:
            return self._load_values([*overrides(values), *more, f"run_dir={json.dumps(f'{self.folder}/{inside}')}"])

        return train_windows(load, arm.name, folder, windows, self.on_progress, self.on_window)

    def _load_values(self, more: Sequence[str]) -> Experiment:
        """Loads the experiment of a trial, which is no search itself."""
        changed = [*self.common_overrides, *more, "search=null"]
        return load_experiment(self.config, changed, registry=self.base.registry)

    def _fresh_seeds(self, best: Mapping[str, TrialResult]) -> list[dict[str, Any]]:
        """Runs the best trial of each arm on fresh seeds to the end of the stream; measures the windows held out."""
        # Only windows that no trial has seen: the best of many trials looks too good on those that chose it.
        span = self.tuning[-1].end_us, self.windows[-1].end_us
        entries: list[dict[str, Any]] = []
        # Without the seed of the trials, which favours the values that were chosen with it.
        for seed in range(self.base.config.seed + 1, self.base.config.seed + 1 + self.section.seeds):
            stores: dict[str, Store] = {}
            for arm in self.arms:
                folder = f"fresh-{arm.name}-seed-{seed}"
                for store in self._train(arm, best[arm.name].values, folder, len(self.windows), [f"seed={seed}"]):
                    stores[arm.name] = store
            for arm in self.arms:
                if arm.role != "student":
                    student = stores[self.student.name], self.student.name
                    gain = GainOverTime(student, (stores[arm.name], arm.name), self.task, *span)
                    gain.update()
                    entries.append({"seed": seed, "baseline": arm.name, **self._gain_entry(gain)})
        return entries

    def _gain_entry(self, gain: GainOverTime) -> dict[str, Any]:
        ne, baseline_ne = gain.losses.ne or (None, None)
        interval = gain.losses.interval95(self.base.config.evaluation.replicates, self.base.config.seed)
        return {
            "examples": gain.losses.examples,
            "ne": ne,
            "baseline_ne": baseline_ne,
            "ne_gain_percent": gain.losses.gain,
            "interval95": None if interval is None else list(interval),
        }

    def _summary(
        self, studies: Mapping[str, ArmStudy], best: Mapping[str, TrialResult], fresh: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        arms: dict[str, Any] = {}
        for arm in self.arms:
            results = studies[arm.name].results
            arms[arm.name] = {
                "role": arm.role,
                "parameters": list(arm.parameters),
                "best": best[arm.name].number,
                "windows": sum(result.windows for result in results),
                "grid": grid_size(arm.parameters),
                "trials": [_trial_entry(result) for result in results],
            }
        gains: list[dict[str, Any]] = []
        for arm in self.arms:
            entries = [entry for entry in fresh if entry["baseline"] == arm.name]
            if entries:
                measured = [entry["ne_gain_percent"] for entry in entries if entry["ne_gain_percent"] is not None]
                mean = sum(measured) / len(measured) if measured else None
                gains.append(
                    {
                        "baseline": arm.name,
                        "ne_gain_percent": mean,
                        "interval95": gain_interval(entries),
                        "seeds": entries,
                    }
                )
        return {
            "experiment": self.base.config.name,
            "model": self.student.name,
            "task": self.task,
            "tuning": {"windows": len(self.tuning), "until": str(self.tuning[-1])},
            "held_out": {"windows": len(self.windows) - len(self.tuning)},
            "arms": arms,
            "gains": gains,
        }


def _trial_entry(result: TrialResult) -> dict[str, Any]:
    return {
        "number": result.number,
        "values": dict(result.values),
        "state": result.state,
        "windows": result.windows,
        "gain_percent": result.figure,
        "reason": result.reason,
    }


def _trial_folder(arm: SearchedArm, number: int) -> str:
    return f"{arm.name}-{number:04d}"


def trial_line(arm: SearchedArm, result: TrialResult, trials: int) -> str:
    """Describes a finished trial in a line."""
    figure = "" if result.figure is None else f" {result.figure:+.2f}%"
    reason = f": {result.reason}" if result.reason else ""
    outcome = f"{result.state}{figure} after {result.windows} windows{reason}"
    return f"[{arm.name} {result.number + 1}/{trials}] {label(result.values)}: {outcome}"
