"""What would make a plan fit that does not: changes that a user can type, each of them planned before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from exfm.config.loading import Experiment
from exfm.errors import ConfigError
from exfm.interfaces.layout import TableSharding
from exfm.planning.plan import Plan, Sizes, plan, sum_of, usable

Load = Callable[[list[str]], Experiment]
"""Loads the experiment again with more overrides."""


@dataclass(frozen=True)
class Change:
    """Overrides, and the size of the sharding group where it is another one."""

    overrides: tuple[str, ...] = ()
    group: int | None = None

    def __add__(self, other: Change) -> Change:
        return Change((*self.overrides, *other.overrides), other.group or self.group)

    def __str__(self) -> str:
        option = () if self.group is None else (f"--sharding-group {self.group}",)
        return " ".join((*option, *self.overrides))


@dataclass(frozen=True)
class Search:
    """Looks for changes with which a plan fits.

    Args:
        load: the experiment.
        made: the plan that does not fit.
        model, lengths: as it was made.
    """

    load: Load
    made: Plan
    model: str | None
    lengths: Mapping[str, int]

    def found(self) -> list[dict[str, Any]]:
        """Every change that is enough."""
        changes = [change for change in self._changes() if change is not None]
        return [one for change in dict.fromkeys(changes) if (one := self._tried(change))]

    def _changes(self) -> Iterator[Change | None]:
        lighter = self._row_wise()
        yield lighter
        yield from self._groups(self._bytes("tables", "table_optimizer"))
        if lighter is not None:
            tables = self._bytes("tables")
            yield from (lighter + larger for larger in self._groups(tables + tables // self._width()))
        yield from self._alternatives()
        if all(len(place.shards) == group for place, group in self._places()):
            yield from self._other_plans()
        yield self._of_each("activation_checkpointing", lambda config: "true")
        yield self._of_each("batch_size", lambda config: config.batch_size // 2 or None)
        yield from (self._narrower(share) for share in (2, 4))

    def _tried(self, change: Change) -> dict[str, Any] | None:
        """The change, and what it needs, where the models then fit."""
        cluster = replace(self.made.cluster, group=change.group or self.made.cluster.group)
        try:
            made = plan(self.load(list(change.overrides)), cluster, self.model, self.lengths)
        except ConfigError:
            return None
        return None if made.problem else {"change": str(change), "needed_bytes": int(made.needed().max())}

    def _groups(self, tables: Sizes) -> Iterator[Change]:
        """The first two larger groups whose processes could have room for tables of so many bytes."""
        count, group = self.made.cluster.count, self.made.group
        rest = (self.made.needed() - self._bytes("tables", "table_optimizer")).min()
        sizes = (size for size in range(group + 1, count + 1) if count % size == 0)
        roomy = (size for size in sizes if tables.sum() / size + rest <= usable(self.made.cluster))
        yield from (Change(group=size) for size in islice(roomy, 2))

    def _alternatives(self) -> Iterator[Change]:
        layout = next(iter(self.made.models.values())).layout
        for fields in layout.alternatives:
            yield Change(tuple(f"parallel.{key}={_written(value)}" for key, value in fields.items()))

    def _places(self) -> Iterator[tuple[TableSharding, int]]:
        for planned in self.made.models.values():
            yield from ((place, planned.layout.group) for place in planned.layout.tables)

    def _width(self) -> int:
        return min(planned.needs.arm.config.embedding_dim for planned in self.made.models.values())

    def _row_wise(self) -> Change | None:
        def wanted(config: Any) -> str | None:
            return "rowwise_adagrad" if config.optimizer.tables.name == "adagrad" else None

        return self._of_each("optimizer.tables.name", wanted)

    def _narrower(self, share: int) -> Change | None:
        return self._of_each("embedding_dim", lambda config: config.embedding_dim // share // 4 * 4 or None)

    def _other_plans(self) -> Iterator[Change]:
        registry = self.load([]).registry
        for name in registry.names("parallel_plan"):
            if name != self.made.name:
                yield Change((f"parallel={{name: {name}}}",))

    def _of_each(self, key: str, value_of: Callable[[Any], Any]) -> Change | None:
        """A field of every model that has another value for it."""
        bases = {planned.needs.arm.base: planned.needs.arm.config for planned in self.made.models.values()}
        values = {base: value_of(config) for base, config in bases.items()}
        overrides = tuple(f"models.{base}.{key}={value}" for base, value in values.items() if value is not None)
        return Change(overrides) if overrides else None

    def _bytes(self, *names: str) -> Sizes:
        sizes = [planned.memory[name] for planned in self.made.models.values() for name in names]
        return sum_of(sizes, self.made.group)


def _written(value: Any) -> str:
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)
