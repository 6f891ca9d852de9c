"""Runs a job as a process of this machine: a process group, a lock, a log file, and an end with its parent's."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from exfm.interfaces.launcher import Job, RunningJob, RunsAlreadyError
from exfm.storage.temporary import make_folder

_GUARD = str(Path(__file__).with_name("guard.py"))


class JobProcess(RunningJob):
    """Starts a job as a process, whose output is appended to ``LOG_DIR/NAME.log``.

    The process holds a lock on ``LOG_DIR/NAME.lock``, so that no two run the same job, whoever started them. When this
    process ends, even by SIGKILL, the kernel kills it (on Linux).

    Call it in the main thread: the kernel takes the end of the thread that started a process for the parent's end.

    Raises:
        RunsAlreadyError: a process holds the lock.
    """

    def __init__(self, job: Job, log_dir: str) -> None:
        make_folder(log_dir)
        self.log = Path(log_dir, f"{job.name}.log")
        # Isolated and without ``site``: the guard needs the standard library alone, and every job waits for it.
        guard = (sys.executable, "-I", "-S", _GUARD, str(os.getpid()))
        with _lock(Path(log_dir, f"{job.name}.lock"), job) as lock, self.log.open("ab") as log:
            self._process = subprocess.Popen(
                (*guard, *command_here(job)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(job),
                # The lock belongs to the open file, which the job inherits: it lasts until the job's last process ends.
                pass_fds=(lock.fileno(),),
                # A new group, which signals of the terminal do not reach, and which can be killed as a whole.
                start_new_session=True,
            )

    @property
    def location(self) -> str:
        """Names the process and its log file."""
        return f"process {self._process.pid}, log {self.log}"

    def poll(self) -> int | None:
        """Returns the exit status; once there is any, no process of the job is left."""
        if self._process.returncode is None:
            # The process is looked at before it is waited for, because its number, which is the group's, is its own
            # until then.
            ended = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._signal(signal.SIGKILL)  # the processes that the job has started
        return self._process.poll()

    def stop(self) -> None:
        """Sends SIGTERM: a job ends after the chunk in work."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to all processes of the job, and waits for the job's."""
        if self._process.returncode is None:
            self._signal(signal.SIGKILL)
            self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        # The process may end between the look and the signal.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def command_here(job: Job) -> tuple[str, ...]:
    """Returns the job's command with the interpreter of this process, because ``exfm`` need not be on the path."""
    if job.command[0] != "exfm":
        return job.command
    return (sys.executable, "-m", "exfm", *job.command[1:])


def _environment(job: Job) -> dict[str, str]:
    """Returns the environment of a job: its threads are its cores, unless the user has set a number."""
    # Unbuffered, because the last line of the log has to say why a job was killed.
    return {"OMP_NUM_THREADS": str(job.threads), **os.environ, "PYTHONUNBUFFERED": "1"}


def _lock(path: Path, job: Job) -> BinaryIO:
    """Opens a file and locks it for as long as it is open anywhere."""
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise RunsAlreadyError(f"{job.name}: another process runs it, and holds {path}") from None
    except OSError:  # this file system has no locks; of two that do the same window, the first commits
        pass
    return file
