"""Asks Optuna for the trials of an arm, ends bad trials after a window, and resumes a trial that was interrupted."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from exfm.errors import ConfigError, RunError
from exfm.extras import import_extra
from exfm.redaction import redact
from exfm.search.space import Parameters, Values, as_optuna, suggest

State = Literal["complete", "pruned", "too dear", "failed"]

TrainTrial = Callable[[int, Values], Iterable[float | None]]
"""Trains a trial of a number with its values, and yields its figure after each window: higher is better."""

_FINISHED, _WINDOWS, _REASON, _VALUES = "exfm.state", "exfm.windows", "exfm.reason", "exfm.values"


@dataclass(frozen=True)
class TrialResult:
    """Holds a finished trial.

    Attributes:
        windows: the number of windows that it trained.
        figure: the figure after the last of them; None where there is none.
        reason: why it has failed, or costs too much.
    """

    number: int
    values: Values
    state: State
    windows: int
    figure: float | None
    reason: str = ""


@dataclass(frozen=True)
class StudySettings:
    """Says how an arm is searched.

    Attributes:
        trials: the number of trials.
        pruner: how trials are compared after a window.
        warmup: windows after which no trial ends early.
        seed: of the sampler.
    """

    trials: int
    pruner: Literal["median", "successive_halving", "none"] = "median"
    warmup: int = 2
    seed: int = 0


def import_optuna() -> Any:
    """Imports Optuna, without its log lines.

    Raises:
        ConfigError: it is not installed.
    """
    optuna = import_extra("optuna", "Optuna", "search")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@dataclass
class ArmStudy:
    """Searches the parameters of an arm.

    The same trials come of a search that was interrupted, because each trial's sampler has a seed of its number.

    Args:
        name: the arm's name.
        parameters: the parameters that concern the arm; without any, it has a single trial.
        first: the values of the first trial, which never ends early.
        settings: how it is searched.
        storage: Optuna's storage; in memory by default.
        too_dear: says why values are not allowed; empty where they are.
    """

    name: str
    parameters: Parameters
    first: Values
    settings: StudySettings
    storage: Any = None
    too_dear: Callable[[Values], str] = field(default=lambda values: "")

    def __post_init__(self) -> None:
        optuna = import_optuna()
        pruners = {
            # Plus 1, because Optuna tests from that step on, and our steps count windows from 1.
            "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=self.settings.warmup + 1),
            "successive_halving": lambda: optuna.pruners.SuccessiveHalvingPruner(
                min_resource=self.settings.warmup + 1, reduction_factor=3
            ),
            "none": optuna.pruners.NopPruner,
        }
        self._optuna = optuna
        self._study = optuna.create_study(
            storage=self.storage,
            study_name=self.name,
            direction="maximize",
            load_if_exists=True,
            pruner=pruners[self.settings.pruner](),
        )

    @property
    def budget(self) -> int:
        """The number of trials."""
        return self.settings.trials if self.parameters else 1

    @property
    def results(self) -> list[TrialResult]:
        """The finished trials, in order."""
        return [_result(trial) for trial in self._study.get_trials(deepcopy=False) if trial.state.is_finished()]

    @property
    def best(self) -> TrialResult:
        """The complete trial of the highest figure, the first of several.

        Raises:
            RunError: no trial is complete.
        """
        complete = [result for result in self.results if result.state == "complete" and result.figure is not None]
        if not complete:
            reasons = [result.reason for result in self.results if result.reason] or ["there are no labels to score"]
            raise RunError(f"search: no trial of {self.name} is complete: {reasons[0]}")
        return max(complete, key=lambda result: (result.figure, -result.number))

    def run(self, train: TrainTrial, on_result: Callable[[TrialResult], None] = lambda _: None) -> None:
        """Runs the trials that are not finished; a trial that was interrupted goes on.

        Optuna records a trial that fails, with its reason; the first trial may not fail.
        """
        while len(self.results) < self.budget:
            trial = self._next()
            values = suggest(trial, self.parameters)
            trial.set_user_attr(_VALUES, dict(values))
            # Never the first, whose cost sets the limit.
            reason = self.too_dear(values) if trial.number else ""
            if reason:
                self._tell(trial, "too dear", reason=reason)
            else:
                self._run_trial(trial, values, train)
            on_result(self.results[-1])

    def _next(self) -> Any:
        """Returns the trial that was interrupted, or a new trial."""
        trials = self._study.get_trials(deepcopy=False)
        running = [trial for trial in trials if trial.state == self._optuna.trial.TrialState.RUNNING]
        number = running[0].number if running else len(self.results)
        # A seed for each trial: after an interruption a sampler with a single seed would begin anew.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=self.settings.seed * 100_003 + number,
            n_startup_trials=min(8, max(3, self.settings.trials // 4)),
        )
        if running:
            return self._optuna.trial.Trial(self._study, running[0]._trial_id)
        if not trials:
            self._study.enqueue_trial(as_optuna(self.parameters, self.first))
        return self._study.ask()

    def _run_trial(self, trial: Any, values: Values, train: TrainTrial) -> None:
        reported = self._study.get_trials(deepcopy=False)[trial.number].intermediate_values
        windows = 0
        figure: float | None = None
        try:
            for figure in train(trial.number, values):
                windows += 1
                if figure is None:
                    continue
                # A resumed trial yields its committed windows again, and Optuna warns of a step that comes twice.
                if windows not in reported:
                    trial.report(figure, windows)
                # Never the first, which the others are measured against.
                if trial.number and trial.should_prune():
                    self._tell(trial, "pruned", windows)
                    return
        except (ConfigError, RunError, ValueError) as error:
            # The file as it is fails: all others would have nothing to be measured against.
            if not trial.number:
                raise
            self._tell(trial, "failed", windows, reason=redact(str(error)))
            return
        if figure is None:
            self._tell(trial, "failed", windows, reason="no window has both labels")
        else:
            self._tell(trial, "complete", windows, figure)

    def _tell(self, trial: Any, state: State, windows: int = 0, figure: float | None = None, reason: str = "") -> None:
        states = self._optuna.trial.TrialState
        optuna_states = {
            "complete": states.COMPLETE,
            "pruned": states.PRUNED,
            "too dear": states.PRUNED,
            "failed": states.FAIL,
        }
        # Before the state, because a finished trial cannot be changed.
        trial.set_user_attr(_FINISHED, state)
        trial.set_user_attr(_WINDOWS, windows)
        trial.set_user_attr(_REASON, reason)
        with warnings.catch_warnings(action="ignore"):
            self._study.tell(trial, figure, optuna_states[state])


def _result(trial: Any) -> TrialResult:
    attributes = trial.user_attrs
    figure = trial.value
    if figure is None and trial.intermediate_values:
        figure = trial.intermediate_values[max(trial.intermediate_values)]
    return TrialResult(
        trial.number,
        attributes[_VALUES],
        attributes[_FINISHED],
        attributes[_WINDOWS],
        figure,
        attributes[_REASON],
    )
