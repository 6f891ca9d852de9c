"""Launcher: starts the jobs of an experiment, or writes them as files for an engine that starts them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from pydantic import Field

from exfm.interfaces.component import Component, ComponentConfig


@dataclass(frozen=True)
class Job:
    """Describes a job: a command that does a stage of some models, by itself, over the run's folder.

    Attributes:
        name: letters, digits, ``_`` and ``-``; the job keeps it as long as the run's folder is there.
        command: the command line, whose first word is ``exfm``. It may be started again wherever it was killed.
        models: the models that it trains or labels for, controls left out.
        reads: its inputs, as paths in the run's folder, or ``stream``.
        writes: its outputs, as paths in the run's folder.
        waits_for: names of the jobs whose files it reads. A job that follows waits for the files by itself.
        cores: how many cores it computes on; below 1, its share of a core.
        memory_bytes: how much memory it takes.
        follows: whether it goes on as files arrive. A job that does not follow starts when the jobs that it waits for
            have ended.
    """

    name: str
    command: tuple[str, ...]
    models: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    waits_for: tuple[str, ...] = ()
    cores: float = 1.0
    memory_bytes: int = 1 << 30
    follows: bool = True

    @property
    def threads(self) -> int:
        """Returns the number of threads that it computes with."""
        # Rounded down, because threads without a core wait for each other.
        return max(int(self.cores), 1)

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as `exfm jobs` prints them."""
        return asdict(self)


@dataclass(frozen=True)
class Fleet:
    """Holds the jobs of an experiment, each after the jobs that it waits for.

    Attributes:
        name: the experiment's name.
        run_dir: the run's folder, any fsspec URL.
        log_dir: the folder on this machine for the log file of each job.
    """

    name: str
    run_dir: str
    log_dir: str
    jobs: tuple[Job, ...]


class RunsAlreadyError(RuntimeError):
    """Reports that another process, such as another `exfm up` of the run, runs the job."""


class RunningJob(ABC):
    """Controls a job that a launcher has started."""

    @property
    @abstractmethod
    def location(self) -> str:
        """Where it runs, as messages name it: a process, a node, an id."""

    @abstractmethod
    def poll(self) -> int | None:
        """Returns the exit status, negative for a signal; None while the job runs. It does not wait.

        Raises:
            RunsAlreadyError: an engine that starts the job later has found that another process runs it.
        """

    @abstractmethod
    def stop(self) -> None:
        """Asks the job to end, which keeps its committed windows; it does not wait."""

    @abstractmethod
    def kill(self) -> None:
        """Ends the job and all of its processes at once."""


class JobNeeds(ComponentConfig):
    """The cores and the memory of a job."""

    cores: float = Field(
        1.0, gt=0, description="Cores, rounded down also the number of threads that it computes with; below 1, a share."
    )
    memory_gib: float | None = Field(
        None, gt=0, description="Memory in GiB; by default it is estimated from the tables of its models."
    )


class LauncherConfig(ComponentConfig):
    """Base of every launcher's Config: how models are packed into jobs, and the needs of a job."""

    group_size: int = Field(
        16,
        gt=0,
        description="Most models, controls counted, that a job trains together: they are students of the same teachers "
        "and traffic, and the job reads, decodes and joins once for all.",
    )
    needs: JobNeeds = Field(JobNeeds(), description="Cores and memory of a job.")
    models: dict[str, JobNeeds] = Field(
        {}, description="Needs of a job with this model instead, by the model's name: an FM takes more."
    )
    restarts: int = Field(
        10, ge=0, description="How many times in a row a job that fails is started again, after waits that grow."
    )


class Launcher(Component):
    """Brings the jobs of an experiment to machines: it starts them, or writes files for an engine, or both.

    A launcher that starts jobs overrides ``start``, and `exfm up` keeps its jobs up: it starts a job again that has
    failed, and stops all at the end. A launcher that writes files overrides ``files``, for `exfm jobs --format NAME`.
    """

    kind: ClassVar[str] = "launcher"
    is_default: ClassVar[bool] = False
    """Whether `exfm up` uses it where neither the experiment nor an option names another."""
    files_until_done: ClassVar[bool] = False
    """Whether its files are of jobs that do all that is there and end, because the engine knows their order."""
    Config: ClassVar[type[ComponentConfig]] = LauncherConfig
    config: LauncherConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls.Config, LauncherConfig):
            raise TypeError(f"{cls.__qualname__}.Config must be a subclass of exfm.launch.LauncherConfig")
        # A class without a name is a base of other launchers, which may leave both to them.
        if hasattr(cls, "name") and not (cls.starts_jobs() or cls.writes_files()):
            raise TypeError(f"{cls.__qualname__} must define start or files")

    def __init__(self, config: LauncherConfig) -> None:
        self.config = config

    @classmethod
    def starts_jobs(cls) -> bool:
        """Tells whether it starts jobs, for `exfm up`."""
        return cls.start is not Launcher.start

    @classmethod
    def writes_files(cls) -> bool:
        """Tells whether it writes files, for `exfm jobs`."""
        return cls.files is not Launcher.files

    def open(self, fleet: Fleet) -> None:
        """Prepares for the jobs, such as by a connection to a cluster.

        Raises:
            ValueError: a job cannot run, such as where it takes more than any machine has.
        """

    def has_room(self, job: Job, running: Collection[Job]) -> bool:
        """Tells whether a job can start beside the running jobs; by default an engine's queue decides."""
        return True

    def start(self, job: Job) -> RunningJob:
        """Starts a job. All of its processes must end when this process ends, even by SIGKILL.

        Raises:
            RunsAlreadyError: another process runs it.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of all that ``open`` has taken, when no job runs any more."""

    def files(self, fleet: Fleet) -> Mapping[str, str]:
        """Returns the content of each file for the engine, by its path in a folder of the user's."""
        raise NotImplementedError
