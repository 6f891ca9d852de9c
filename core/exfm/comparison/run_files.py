"""Opens the folders of finished runs for a comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from exfm.config.resolved import parse_resolved
from exfm.config.run_files import CONFIG_FILE, RESULTS_FILE
from exfm.errors import ConfigError
from exfm.redaction import without_credentials
from exfm.storage.complete_runs import check_complete
from exfm.storage.workspace import Workspace
from exfm.supervision.store import Store


@runtime_checkable
class HasFolder(Protocol):
    """Anything that knows the folder of a run, such as a result or an experiment."""

    @property
    def run_dir(self) -> str:
        """The folder, any fsspec URL."""


@dataclass(frozen=True)
class RunFiles:
    """Holds a finished run.

    Attributes:
        label: names the run in tables and plots.
        run_dir: its folder, without credentials.
        config: the content of config.yaml.
        results: the content of results.json.
        store: the run's folder.
    """

    label: str
    run_dir: str
    config: dict[str, Any]
    results: dict[str, Any]
    store: Store

    @property
    def skip(self) -> float:
        """The share of the stream at its beginning that overall figures leave out."""
        return float(self.config["evaluation"]["skip"])


def open_runs(runs: Sequence[str | HasFolder]) -> list[RunFiles]:
    """Opens runs, each with a label that no other has.

    Args:
        runs: folders or URLs, or objects that know their folder.

    Raises:
        ConfigError: a folder has no results, or is named twice.
    """
    urls = [_folder(run) for run in runs]
    twice = [url for url, times in Counter(urls).items() if times > 1]
    if twice:
        raise ConfigError(f"compare: {without_credentials(twice[0])} is named twice")
    opened: list[RunFiles] = []
    for url, label in zip(urls, short_labels(urls), strict=True):
        workspace = Workspace(url)
        check_complete(workspace, url)
        config = parse_resolved(workspace.read(CONFIG_FILE).decode())
        opened.append(RunFiles(label, without_credentials(url), config, workspace.read_json(RESULTS_FILE), Store(url)))
    return opened


def _folder(run: str | HasFolder) -> str:
    if isinstance(run, HasFolder):
        return run.run_dir.rstrip("/")
    if isinstance(run, str):
        return run.rstrip("/")
    raise ConfigError(f"compare: write a run's folder, or the result of exfm.run; given: {type(run).__name__}")


def short_labels(urls: Sequence[str]) -> list[str]:
    """Shortens folders to as many of their last names as tell them apart."""
    split = [without_credentials(url).split("/") for url in urls]
    for length in range(1, max(map(len, split), default=0)):
        labels = ["/".join(names[-length:]) for names in split]
        if len(set(labels)) == len(labels):
            return labels
    return ["/".join(names) for names in split]
