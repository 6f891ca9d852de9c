"""Runs of a campaign, each a line of JSON under the hash of its settings: a run that is there is not repeated."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from streams import beginning

import exfm
from exfm.registry.discovery import discover

Record = dict[str, Any]
Rates = tuple[float, float]  # of the dense layers and of the tables
START: Rates = (0.002, 0.2)
_OF_TASK = ("examples", "base_rate", "ne", "auc", "gauc", "log_loss", "calibration")
_OF_MODEL = ("parameters", "flops_per_example", "train_examples_per_second")


class Log:
    """Records by key, in a file that only grows. A line that an interruption cut short does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if "error" not in record:
                self.records[record["key"]] = record

    def add(self, record: Record) -> Record:
        """Appends a record, on a line of its own."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            start = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(start + json.dumps(record).encode() + b"\n")
        self.records[record["key"]] = record
        return record


def key_of(content: Any) -> str:
    """The hash of anything that JSON can say."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Campaign:
    """Runs of a base experiment, whose model ``fm`` is replaced.

    Attributes:
        base: the experiment file.
        overrides: of all runs, such as the path of the data.
        folder: where records and the runs in work are.
        end_us: where the stream ends for this campaign; None for its own end.
    """

    base: Path
    overrides: tuple[str, ...]
    folder: Path
    end_us: int | None = None

    @property
    def log(self) -> Log:
        """The records so far."""
        return Log(self.folder / "records.jsonl")

    def experiment(self, model: Mapping[str, Any], seed: int) -> exfm.Experiment:
        """The experiment of a run, on its part of the stream."""
        changes = [f"models.fm.{key}={json.dumps(value)}" for key, value in model.items()]
        experiment = exfm.load_experiment(str(self.base), [*self.overrides, *changes, f"seed={seed}"])
        return beginning(experiment, self.end_us)

    def measure(self, name: str, model: Mapping[str, Any], seed: int) -> Record:
        """The record of a run, from the log or from running it. A run that fails is recorded and done again later."""
        experiment = self.experiment(model, seed)
        span = experiment.source.time_range()
        # The settings asked for, not the resolved config: a new field with a default does not make a new run of it.
        asked = [yaml.safe_load(self.base.read_text()), model, seed]
        key = key_of([asked, span.start_us, span.end_us, torch.get_num_threads()])
        log = self.log
        if key in log.records:
            return log.records[key] | {"model": name, "settings": model}
        run_dir = self.folder / key
        placed = replace(experiment, config=experiment.config.model_copy(update={"run_dir": str(run_dir)}))
        record: Record = {"key": key, "model": name, "seed": seed, "settings": model}
        started = time.perf_counter()
        try:
            record |= _figures(exfm.run(placed), experiment.schema.labels[0].name)
        except (ValueError, RuntimeError) as error:
            record["error"] = str(error)
        else:
            record["versions"] = yaml.safe_load((run_dir / "config.yaml").read_text())["versions"]
        # Removed only now: a run that was interrupted goes on from its last window.
        shutil.rmtree(run_dir, ignore_errors=True)
        return log.add(record | {"seconds": round(time.perf_counter() - started, 1), **machine()})

    def tune(
        self,
        name: str,
        model: Mapping[str, Any],
        points: int | None = None,
        start: Rates = START,
        seeds: Sequence[int] = (0,),
    ) -> Record:
        """The best learning rates by NE: either is doubled or halved for as long as that helps.

        Args:
            points: where given, how many pairs of rates are tried at most.
            start: the first pair.
            seeds: NE is the mean over these.

        Raises:
            RuntimeError: no learning rate that was tried worked.
        """
        tried = {start}
        found = best([self._at(name, model, start, seeds)])
        while True:
            dense, tables = (found["settings"]["optimizer"][part]["lr"] for part in ("dense", "tables"))
            around = [(dense, 2 * tables), (dense, tables / 2), (2 * dense, tables), (dense / 2, tables)]
            new = [rates for rates in around if rates not in tried]
            new = new if points is None else new[: points - len(tried)]
            if not new:
                return found
            tried.update(new)
            better = best([found, *(self._at(name, model, rates, seeds) for rates in new)])
            if better is found:
                return found
            found = better

    def _at(self, name: str, model: Mapping[str, Any], rates: Rates, seeds: Sequence[int]) -> Record:
        """The record of the first seed, or of the first that failed; its NE is the mean over all."""
        optimizer = {part: {"lr": rate} for part, rate in zip(("dense", "tables"), rates, strict=True)}
        records = [self.measure(name, {**model, "optimizer": optimizer}, seed) for seed in seeds]
        failed = [record for record in records if "error" in record]
        return failed[0] if failed else records[0] | {"ne": fmean(record["ne"] for record in records)}


def best(records: Sequence[Record]) -> Record:
    """The record of the lowest NE.

    Raises:
        RuntimeError: all of them failed.
    """
    done = [record for record in records if "error" not in record]
    if not done:
        raise RuntimeError(f"{records[0]['model']}: every learning rate failed, the first with: {records[0]['error']}")
    return min(done, key=lambda record: float(record["ne"]))


def _figures(results: Mapping[str, Any], task: str) -> Record:
    model = results["models"]["fm"]
    return {key: model["tasks"][task][key] for key in _OF_TASK} | {key: model[key] for key in _OF_MODEL}


def machine() -> Record:
    """Everything that speed depends on."""
    return {"threads": torch.get_num_threads(), "cpus": os.cpu_count(), "processor": _processor()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def missing(model: Mapping[str, Any]) -> list[str]:
    """The components of a model that no installed plugin offers, as KIND.NAME."""
    registry = discover()
    kinds = ("backbone", "sequence_encoder")
    return [
        f"{kind}.{model[kind]['name']}"
        for kind in kinds
        if kind in model and model[kind]["name"] not in registry.names(kind)
    ]
