"""Records as markdown."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

Record = Mapping[str, Any]


def spread(values: Sequence[float]) -> str:
    """Mean and, of several values, their standard deviation."""
    return f"{mean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def header(records: Sequence[Record]) -> str:
    """The rows that the figures rest on.

    Raises:
        ValueError: the records were scored on different examples, so that they do not compare.
    """
    scored = {(record["examples"], round(record["base_rate"], 9)) for record in records}
    if len(scored) > 1:
        raise ValueError(f"these runs were scored on different rows (examples, base rate): {sorted(scored)}")
    [(examples, rate)] = scored
    versions = {name: version for record in records for name, version in record["versions"].items()}
    machines = {f"{record['processor']}, {record['cpus']} CPUs, threads {record['threads']}" for record in records}
    return "\n".join(
        [
            f"{examples:,} scored examples, base rate {rate:.2%}; mean ± standard deviation over seeds.",
            f"Command: `python {shlex.join(sys.argv)}`",
            f"Machine: {'; '.join(sorted(machines))}. " + ", ".join(f"{k} {v}" for k, v in sorted(versions.items())),
        ]
    )


def rows(records: Iterable[Record]) -> list[str]:
    """A row per model, the lowest NE first; speeds and costs are means over seeds."""
    by_model: dict[str, list[Record]] = {}
    for record in records:
        by_model.setdefault(record["model"], []).append(record)
    ordered = sorted(by_model.items(), key=lambda item: mean(record["ne"] for record in item[1]))
    return [_row(name, of_model) for name, of_model in ordered]


def _row(name: str, records: Sequence[Record]) -> str:
    first = records[0]
    cells = [
        name,
        spread([record["ne"] for record in records]),
        spread([record["auc"] for record in records]),
        ", ".join(str(record["seed"]) for record in records),
        f"{first['parameters']['dense']:,}",
        f"{mean(record['flops_per_example'] for record in records):,.0f}",
        f"{mean(record['train_examples_per_second'] for record in records):,.0f}",
        learning_rates(first["settings"]),
    ]
    return f"| {' | '.join(cells)} |"


def learning_rates(settings: Record) -> str:
    """Of the dense layers and the tables, or of both together."""
    if "learning_rate" in settings:
        return f"{settings['learning_rate']:g}"
    optimizer = settings.get("optimizer")
    return f"{optimizer['dense']['lr']:g} / {optimizer['tables']['lr']:g}" if optimizer else "default"


def table(records: Sequence[Record]) -> str:
    """Header and table."""
    columns = ["model", "NE", "AUC", "seeds", "dense parameters", "FLOPs/example", "train examples/s", "learning rates"]
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *rows(records)]
    return header(records) + "\n\n" + "\n".join(lines)
