"""Brings the jobs of an experiment up, on this machine or by a launcher: the graph of jobs, groups, restarts."""

from __future__ import annotations

from exfm.interfaces.launcher import Fleet, Job, JobNeeds, LauncherConfig, RunningJob, RunsAlreadyError
from exfm.launch.process import JobProcess, command_here

__all__ = [
    "Fleet",
    "Job",
    "JobNeeds",
    "JobProcess",
    "LauncherConfig",
    "RunningJob",
    "RunsAlreadyError",
    "command_here",
]
