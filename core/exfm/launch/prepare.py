"""Prepares the fleet of an experiment: its launcher, its groups and its jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exfm.config.loading import Experiment, load_experiment
from exfm.errors import ConfigError, PluginError
from exfm.interfaces.launcher import Fleet, Launcher
from exfm.launch.graph import Commands, build_fleet, log_folder
from exfm.launch.groups import Group, pack
from exfm.launch.kept_groups import deciding_groups, keep_groups, read_groups
from exfm.storage.workspace import Workspace


def load_with_launcher(commands: Commands, name: str | None) -> tuple[Experiment, Launcher]:
    """Loads an experiment, and builds its launcher.

    Args:
        name: the launcher instead of the file's; by default the file's, or else the default launcher.

    Raises:
        ConfigError: the file is wrong, or no launcher has the name.
    """
    # Not in ``commands``, because the command of a job must not depend on the launcher that starts it.
    overrides = [*commands.overrides, f"launcher.name={name}"] if name else commands.overrides
    experiment = load_experiment(commands.config, overrides, block=commands.block)
    spec = experiment.config.launcher
    try:
        if spec is not None:
            launcher: Any = spec.build()
        else:
            component = experiment.registry.resolve("launcher", experiment.registry.default_launcher())
            launcher = component(component.Config())
    except PluginError:
        # PluginError is a ValueError too, but already names the plugin at fault.
        raise
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{commands.config}: launcher: {error}") from error
    assert isinstance(launcher, Launcher)
    return experiment, launcher


def prepare_fleet(
    experiment: Experiment, launcher: Launcher, commands: Commands, *, keep: bool
) -> tuple[Fleet, Sequence[Group]]:
    """Packs the models into groups and returns the jobs; groups that the run has already stay as they are.

    Args:
        keep: whether the groups are kept in the run's folder, because their jobs are about to start.
    """
    workspace = Workspace(experiment.run_dir)
    if not keep:
        groups = pack(experiment, read_groups(workspace), launcher.config.group_size)
    else:
        # Read under the lock too: of two calls at once the second sees the groups of the first.
        with deciding_groups(log_folder(experiment)):
            groups = pack(experiment, read_groups(workspace), launcher.config.group_size)
            keep_groups(workspace, groups)
    return build_fleet(experiment, launcher.config, groups, commands), groups
