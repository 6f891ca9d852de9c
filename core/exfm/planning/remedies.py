"""Searches for changes of the command line with which a plan fits, and plans each before it is suggested."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from exfm.config.loading import Experiment
from exfm.errors import ConfigError
from exfm.interfaces.layout import TableSharding
from exfm.planning.cluster_plan import ClusterPlan, Sizes, plan, sum_sizes, usable

Load = Callable[[list[str]], Experiment]
"""Loads the experiment again with more overrides."""


@dataclass(frozen=True)
class Change:
    """Holds overrides of the experiment, and the size of the sharding group if it changes."""

    overrides: tuple[str, ...] = ()
    group: int | None = None

    def __add__(self, other: Change) -> Change:
        return Change((*self.overrides, *other.overrides), other.group or self.group)

    def __str__(self) -> str:
        words = list(self.overrides)
        if self.group is not None:
            words.insert(0, f"--sharding-group {self.group}")
        return " ".join(words)


@dataclass(frozen=True)
class Search:
    """Searches for changes with which a plan fits.

    Args:
        load: loads the experiment.
        planned: the plan that does not fit.
        model: name of the only planned model, as for ``plan``.
        lengths: lengths of lists, as for ``plan``.
    """

    load: Load
    planned: ClusterPlan
    model: str | None
    lengths: Mapping[str, int]

    def run(self) -> list[dict[str, Any]]:
        """Returns every change that suffices, with the bytes that it needs."""
        remedies: list[dict[str, Any]] = []
        # A dict removes repeated changes and keeps their order.
        for change in dict.fromkeys(self._changes()):
            remedy = None if change is None else self._try(change)
            if remedy is not None:
                remedies.append(remedy)
        return remedies

    def _changes(self) -> Iterator[Change | None]:
        """Yields changes to try, least effect on results first; None if a change does not apply."""
        lighter = self._row_wise()
        yield lighter
        yield from self._groups(self._bytes("tables", "table_optimizer"))
        if lighter is not None:
            tables = self._bytes("tables")
            # The row-wise optimizer has a number per row, which is a table divided by its width.
            for larger in self._groups(tables + tables // self._width()):
                yield lighter + larger
        yield from self._alternatives()
        # Other parallel plans may help if each process has a shard of every table, as with plans that replicate tables.
        if all(len(sharding.shards) == group for sharding, group in self._shardings()):
            yield from self._other_plans()
        yield self._set_in_models("activation_checkpointing", lambda config: "true")
        yield self._set_in_models("batch_size", lambda config: config.batch_size // 2 or None)
        yield self._narrower(2)
        yield self._narrower(4)

    def _try(self, change: Change) -> dict[str, Any] | None:
        """Returns the change with the bytes that it needs, or None if the models still do not fit."""
        cluster = replace(self.planned.cluster, group=change.group or self.planned.cluster.group)
        try:
            changed = plan(self.load(list(change.overrides)), cluster, self.model, self.lengths)
        except ConfigError:  # a component rejects the change, such as a width that its heads do not divide
            return None
        if changed.problem:
            return None
        return {"change": str(change), "needed_bytes": int(changed.needed().max())}

    def _groups(self, tables: Sizes) -> Iterator[Change]:
        """Yields the two smallest larger groups whose processes may have room for tables of some total size."""
        count, group = self.planned.cluster.count, self.planned.group
        others = (self.planned.needed() - self._bytes("tables", "table_optimizer")).min()
        remaining = 2
        for size in range(group + 1, count + 1):
            # A lower bound that assumes evenly spread tables: planning, which is slow, decides.
            if count % size == 0 and tables.sum() / size + others <= usable(self.planned.cluster):
                yield Change(group=size)
                remaining -= 1
                if not remaining:
                    return

    def _alternatives(self) -> Iterator[Change]:
        layout = next(iter(self.planned.models.values())).layout
        for fields in layout.alternatives:
            yield Change(tuple(f"parallel.{key}={_override(value)}" for key, value in fields.items()))

    def _shardings(self) -> Iterator[tuple[TableSharding, int]]:
        for model in self.planned.models.values():
            for sharding in model.layout.tables:
                yield sharding, model.layout.group

    def _width(self) -> int:
        return min(model.needs.arm.config.embedding_dim for model in self.planned.models.values())

    def _row_wise(self) -> Change | None:
        def row_wise(config: Any) -> str | None:
            return "rowwise_adagrad" if config.optimizer.tables.name == "adagrad" else None

        return self._set_in_models("optimizer.tables.name", row_wise)

    def _narrower(self, share: int) -> Change | None:
        # A multiple of 4, because FBGEMM's kernels need it.
        return self._set_in_models("embedding_dim", lambda config: config.embedding_dim // share // 4 * 4 or None)

    def _other_plans(self) -> Iterator[Change]:
        registry = self.load([]).registry
        for name in registry.names("parallel_plan"):
            if name != self.planned.name:
                yield Change((f"parallel={{name: {name}}}",))

    def _set_in_models(self, key: str, new_value: Callable[[Any], Any]) -> Change | None:
        """Sets a field in the models whose new value is not None; returns None if there is no such model."""
        # A control shares the config of its student: a dict by base name sets it once.
        overrides: dict[str, str] = {}
        for model in self.planned.models.values():
            value = new_value(model.needs.arm.config)
            if value is not None:
                overrides[model.needs.arm.base] = f"models.{model.needs.arm.base}.{key}={value}"
        return Change(tuple(overrides.values())) if overrides else None

    def _bytes(self, *names: str) -> Sizes:
        sizes = [model.memory[name] for model in self.planned.models.values() for name in names]
        return sum_sizes(sizes, self.planned.group)


def _override(value: Any) -> str:
    """Writes a value as the command line's overrides take it."""
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)
