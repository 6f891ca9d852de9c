"""The sizes of the benchmark, and the campaign that runs them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.append(str(ROOT / "benchmarks" / "quality"))  # whose campaign, streams and tables serve here too

from campaign import Campaign, Record  # noqa: E402 (found by the line above)

__all__ = ["FAMILIES", "HERE", "ROOT", "SIZES", "STREAM", "Campaign", "Model", "Record", "measure", "model_of"]
FAMILIES = ("wukong", "interformer", "gem")
SIZES = ("tiny", "lite", "small", "base", "large")
DOCUMENTED = ("lite", "base", "large")
STREAM = HERE / "stream.yaml"
Model = dict[str, Any]


def model_of(family: str, size: str) -> Model:
    """The keys of ``models.fm`` of a size: those of its example, or those in sizes.yaml and lite's others."""
    if size in DOCUMENTED:
        return _example(f"{family}-{size}")
    sizes: dict[str, Model] = yaml.safe_load((HERE / "sizes.yaml").read_text())
    return _example(f"{family}-lite") | sizes[f"{family}-{size}"]


def _example(name: str) -> Model:
    text = (ROOT / "examples" / "models" / f"{name}.yaml").read_text()
    model: Model = yaml.safe_load(text)["models"]["fm"]
    return model


def measure(campaign: Campaign, models: Mapping[str, Model], seeds: Sequence[int]) -> list[Record]:
    """The records of all models and seeds; runs the missing ones.

    Raises:
        RuntimeError: a run failed.
    """
    records = []
    for seed, (name, model) in product(seeds, models.items()):
        record = campaign.measure(name, model, seed)
        if "error" in record:
            raise RuntimeError(f"{name}, seed {seed}: {record['error']}")
        told = f"NE {record['ne']:.4f}, {record['flops_per_example'] / 1e6:.2f} MFLOPs, {record['seconds']:.0f} s"
        print(f"{name}, seed {seed}: {told}", file=sys.stderr, flush=True)
        records.append(record)
    return records
