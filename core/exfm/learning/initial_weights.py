"""Starts a model from the weights of another: of a model of this run or another, or of a file made elsewhere.

Tensors are matched by name; tables by the table's name, wherever the model keeps them. The optimizer state of tables
comes along, because tables that have learned would be torn by the large first steps of a new optimizer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import fsspec
import safetensors.torch
import torch
from torch import Tensor

from exfm.config.lenders import Lender
from exfm.config.training_sections import InitFrom
from exfm.data.batch import Batch
from exfm.errors import ConfigError, suggestion
from exfm.interfaces.data_source import Window, utc
from exfm.interfaces.local_shards import StateTensor
from exfm.learning.trainer import Trainer
from exfm.mappings import add_prefix, without
from exfm.modeling.build import build_model
from exfm.modeling.difference import relative_difference
from exfm.modeling.growth import RenamedGrowth
from exfm.modeling.parts import model_memory, table_of
from exfm.modeling.tensor_places import Places, fitted
from exfm.storage.finite import check_snapshot
from exfm.storage.snapshot_at import snapshot_at
from exfm.storage.snapshots import Snapshot, SnapshotRegistry, TensorFiles, same_on_all
from exfm.supervision.store import Home, Store, initial_home

_OWNERS = ("table_", "sequence_", "task_", "entity_", "feature_")
"""Begin the names of submodules that belong to a table, sequence, task, entity or feature of the data."""

_FEW = 64  # examples of the first batch on which a model is checked
_TOLERANCE = 1e-5  # of a probability: more than the rounding of any network here, and less than any table row matters


@dataclass
class InitialWeights:
    """Lists the tensors that a model took from another model.

    Attributes:
        origin: the other model, in words.
        loaded: tensors taken as they are.
        grown: tensors that are larger here, and took the smaller tensor as their beginning.
        new: tensors that start anew.
        left: tensors of the other model that have no place here.
        new_tables: weights of the tables that the other model lacks.
    """

    origin: str
    loaded: list[str] = field(default_factory=list)
    grown: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    new_tables: list[str] = field(default_factory=list)

    def counters(self) -> dict[str, Any]:
        """Returns the lists, for the commit of the model's first window."""
        return {
            "origin": self.origin,
            "loaded": self.loaded,
            "grown": self.grown,
            "new": self.new,
            "left": self.left,
        }


Read = Callable[[Mapping[str, str], Mapping[str, StateTensor]], None]
"""Reads tables of the other model into tensors of this model: takes the other's names and the tensors, by name here."""


@dataclass(frozen=True)
class _Origin:
    """Holds the tensors of the other model.

    Attributes:
        weights, training: tensors by name. Tables of a snapshot are on the meta device, until they are read.
        read_weights, read_training: read tables of a snapshot; None where ``weights`` holds all tensors.
    """

    text: str
    weights: Mapping[str, Tensor]
    training: Mapping[str, Tensor]
    learned: frozenset[str]
    read_weights: Read | None = None
    read_training: Read | None = None


def load_initial_weights(
    trainer: Trainer, parent: Lender | None, store: Store, window: Window
) -> InitialWeights | None:
    """Overwrites a new model's weights by those of the model that its ``init_from`` names; None without ``init_from``.

    Args:
        parent: the record of the other model; None for a file made elsewhere.
        store: the run's folder.
        window: the model's first window. The other model must not have trained on it.

    Raises:
        ConfigError: there is no snapshot that is old enough, or a tensor does not fit.
    """
    config = trainer.arm.config.init_from
    if config is None:
        return None
    where = f"models.{trainer.arm.base}.init_from"
    if parent is None:
        origin, places = _from_file(config, where), None
    else:
        origin, places = _from_run(trainer, config, store, window, where), _places(trainer, parent, config, where)
    taken = InitialWeights(origin.text)
    weights = _weights(trainer, config, origin, places, taken, where)
    trainer.load_weights(weights)
    trainer.load_training_state(_training_state(trainer, config, origin, taken))
    heads = {name for name in (*taken.loaded, *taken.grown) if name.startswith("heads.task_")}
    for task in trainer.arm.tasks:
        has_head = any(name.startswith(f"heads.task_{task}.") for name in heads)
        if has_head and (config.path or _mapped(task, config) in origin.learned):
            trainer.learned.add(task)
    return taken


def _from_file(config: InitFrom, where: str) -> _Origin:
    """Reads a safetensors file that was made elsewhere."""
    try:
        with fsspec.open(config.path, "rb") as file:
            tensors = safetensors.torch.load(file.read())
    except (OSError, ValueError, ImportError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{where}.path: {config.path!r} cannot be read as safetensors: {error}") from error
    return _Origin(config.path, tensors, {}, frozenset())


def _from_run(trainer: Trainer, config: InitFrom, store: Store, window: Window, where: str) -> _Origin:
    """Reads the snapshot that the file names, or the newest that knows no label of the first window or later."""
    home = initial_home(store, config)
    for snapshot in same_on_all(trainer.plan.process_group, _candidates(home, config, window)):
        snapshots = home.store.snapshots
        weights = snapshots.describe(snapshot.weights)
        weights |= snapshots.load_whole(snapshot.weights, lambda name: not table_of(name))
        check = partial(
            check_snapshot,
            snapshot,
            constants=trainer.constants,
            where=home.store.workspace.url,
            process_group=trainer.plan.process_group,
        )
        check({name: value for name, value in weights.items() if not value.is_meta})
        text = f"{home.model} of {home.store.workspace.url} at {utc(snapshot.watermark_us)}"
        return _Origin(
            text,
            weights,
            snapshots.describe(snapshot.training),
            frozenset(snapshot.learned),
            _reader(trainer, snapshots, snapshot.weights, check),
            _reader(trainer, snapshots, snapshot.training, check),
        )
    raise ConfigError(f"{where}: {_none_old_enough(home.store, home.model, window, trainer.arm.base)}")


Check = Callable[[Mapping[str, StateTensor]], None]


def _reader(trainer: Trainer, snapshots: SnapshotRegistry, files: TensorFiles, check: Check) -> Read:
    """Returns a function that reads this process's shards of a snapshot's tables into those of the model."""

    def read(their_names: Mapping[str, str], ours: Mapping[str, StateTensor]) -> None:
        left = dict(their_names)
        # Several tables may start as the same table: each time through the files, a single of them reads it.
        while left:
            names = {theirs: name for name, theirs in left.items()}
            destinations = {theirs: ours[name] for theirs, name in names.items()}
            growth = RenamedGrowth(trainer.growth, names)
            check(snapshots.load(files, destinations.__contains__, destinations.get, growth))
            left = without(left, *names.values())

    return read


def _candidates(home: Home, config: InitFrom, window: Window) -> Iterator[Snapshot]:
    """Yields the snapshots that may start a model in a window, the best first."""
    registry = home.store.snapshots
    if config.at:
        snapshot = snapshot_at(registry, home.model, config.at)
        if snapshot.watermark_us <= window.start_us:
            yield snapshot
        return
    for snapshot in registry.published(home.model, window.start_us):
        if registry.is_stored(snapshot):
            yield snapshot


def _none_old_enough(store: Store, model: str, window: Window, name: str) -> str:
    """Says why no snapshot can start a model, and which start would do."""
    kept: list[Snapshot] = list(store.snapshots.newest_first(model, sys.maxsize))
    if not kept:
        return f"{store.workspace.url} has no snapshot of {model!r}; train it first"
    oldest, newest = utc(kept[-1].watermark_us), utc(kept[0].watermark_us)
    return (
        f"the model's first window begins at {window}, and each snapshot of {model!r} in {store.workspace.url} that is "
        f"kept, or that `at` names, is held or has trained on later examples, whose labels the model would know before "
        f"it predicts them. Those that are kept have trained until {oldest} to {newest}: set models.{name}.start"
    )


def _places(trainer: Trainer, parent: Lender, config: InitFrom, where: str) -> Places:
    """Returns the places of the other model's tokens among the model's.

    Raises:
        ConfigError: tokens that both have are in another order, so that no weight of the backbone would fit.
    """
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        other = build_model(parent.arm, parent.schema)
    here, theirs = trainer.model.token_names, other.token_names
    numbers = _numbers(theirs, here, config)
    present = [number for number in numbers if number >= 0]
    if present != sorted(present) and not _is_fresh("backbone", config):
        raise ConfigError(
            f"{where}: the model reads its features in another order than {config.model!r}, so that the weights of the "
            f"backbone do not fit: {', '.join(here)}; there: {', '.join(theirs)}. Keep the order, or start the "
            "backbone anew with fresh: [backbone]"
        )
    dense = trainer.model.dense_names
    return Places(numbers, len(here), _numbers(other.dense_names, dense, config), len(dense))


def _numbers(theirs: Sequence[str], here: Sequence[str], config: InitFrom) -> tuple[int, ...]:
    """Returns the number here of each name there; -1 for a name that is not here."""
    numbers = dict.fromkeys(theirs, -1)
    for number, name in enumerate(here):
        numbers[_mapped(name, config)] = number
    return tuple(map(numbers.__getitem__, theirs))


def _weights(
    trainer: Trainer,
    config: InitFrom,
    origin: _Origin,
    places: Places | None,
    taken: InitialWeights,
    where: str,
) -> dict[str, StateTensor]:
    """Chooses each tensor of the model: the other model's, grown where it is larger here, or the model's own."""
    present = trainer.weights()
    _check_names(present, config, where)
    table_names = {table_of(name): name for name in origin.weights if table_of(name)}
    used: set[str] = set()
    weights: dict[str, StateTensor] = {}
    unread: dict[str, str] = {}
    for name, tensor in present.items():
        table = table_of(name)
        other = table_names.get(_mapped(table, config), "") if table else _their_name(name, config)
        if other not in origin.weights or _is_fresh(name, config):
            weights[name] = tensor
            taken.new.append(name)
            if table:
                taken.new_tables.append(name)
            continue
        used.add(other)
        theirs = origin.weights[other]
        if table:
            theirs = trainer.growth.grow_whole({name: theirs})[name]
        taken_over = fitted(name, theirs, tensor, places)
        if taken_over is None:
            raise ConfigError(
                f"{where}: {name} has the shape {list(tensor.shape)} here and {list(theirs.shape)} in {origin.text}. "
                f"Start it anew with fresh: [{_part_of_name(name)}], or keep the shape"
            )
        weights[name] = taken_over
        if taken_over.is_meta:
            weights[name] = tensor
            unread[name] = other
        same = theirs.shape == tensor.shape and origin.weights[other].shape == theirs.shape
        (taken.loaded if same else taken.grown).append(name)
    taken.left += sorted(origin.weights.keys() - used)
    if not taken.loaded and not taken.grown:
        raise ConfigError(
            f"{where}: no tensor of {origin.text} has a name of this model's; first names here: "
            f"{', '.join(list(present)[:3])}; there: {', '.join(list(origin.weights)[:3])}. Set map: {{HERE: THERE}}"
        )
    if origin.read_weights is not None:
        origin.read_weights(unread, weights)
    return weights


def _check_names(present: Mapping[str, StateTensor], config: InitFrom, where: str) -> None:
    """Checks that each name in ``fresh`` and ``map`` is that of a tensor, from its beginning on, or of the data.

    Raises:
        ConfigError: a name matches nothing, so that it would have no effect.
    """
    modules: set[str] = set()
    data: set[str] = set()
    for name in present:
        pieces = name.split(".")
        modules.update(".".join(pieces[:count]) for count in range(1, len(pieces) + 1))
        for piece in pieces:
            data.update(piece.removeprefix(owner) for owner in _OWNERS if piece.startswith(owner))
    for key, names, allowed in (("fresh", config.fresh, modules), ("map", config.map, modules | data)):
        for name in names:
            if name not in allowed:
                near = suggestion(name, (shown for shown in allowed if shown.count(".") < 2))
                raise ConfigError(f"{where}.{key}: the model has no tensor, table or task {name!r}.{near}")


def _training_state(
    trainer: Trainer, config: InitFrom, origin: _Origin, taken: InitialWeights
) -> dict[str, StateTensor]:
    """Returns the model's own training state with the optimizer state of the tables that it took."""
    state = trainer.training_state() | add_prefix("table.", trainer.parallel_model.table_optimizer_buffers())
    unread: dict[str, str] = {}
    fresh = set(map(table_of, taken.new_tables))
    theirs: dict[tuple[str, str], str] = {}
    for name in origin.training:
        if (key := _table_state(name)) is not None:
            theirs[key] = name
    for name, tensor in state.items():
        key = _table_state(name)
        if key is None or key[0] in fresh:
            continue
        other = theirs.get((_mapped(key[0], config), key[1]))
        if other is None:
            continue
        grown = trainer.growth.grow_whole({name: origin.training[other]})[name]
        if grown.shape == tensor.shape:  # another kind of optimizer keeps other shapes, and starts anew
            unread[name] = other
    if origin.read_training is not None:
        origin.read_training(unread, state)
    return state


def _table_state(name: str) -> tuple[str, str] | None:
    """Returns the table and the kind of an entry of the tables' optimizer state; None for other entries."""
    if not name.startswith("table."):
        return None
    owner, _, kind = name.rpartition(".weight.")
    table = owner.rpartition(".")[2]
    return (table.removeprefix("table_"), kind) if table.startswith("table_") else None


def _mapped(name: str, config: InitFrom) -> str:
    return config.map.get(name, name)


def _their_name(name: str, config: InitFrom) -> str:
    """Returns a tensor's name in the other model."""
    for here, there in config.map.items():
        if name == here or name.startswith(f"{here}."):
            return there + name.removeprefix(here)
    return ".".join(_their_piece(piece, config) for piece in name.split("."))


def _their_piece(piece: str, config: InitFrom) -> str:
    """Returns the other model's name of a submodule, such as ``task_click`` where click is called otherwise there."""
    for owner in _OWNERS:
        if piece.startswith(owner) and piece.removeprefix(owner) in config.map:
            return owner + config.map[piece.removeprefix(owner)]
    return piece


def _is_fresh(name: str, config: InitFrom) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in config.fresh)


def _part_of_name(name: str) -> str:
    """Returns the module to name in ``fresh``: the backbone or states as a whole, others with their second name."""
    pieces = name.split(".")
    return pieces[0] if pieces[0] in ("backbone", "states") else ".".join(pieces[:2])


def check_new_tables(trainer: Trainer, taken: InitialWeights, batch: Batch) -> None:
    """Checks on its first batch that a model predicts as the other did, whatever its new tables hold.

    Raises:
        ConfigError: it does not, because the backbone reads a new table with weights of other inputs.
    """
    memory = model_memory(trainer.model)
    tables = [memory[name] for name in taken.new_tables if name in memory]
    if not taken.grown or not tables:
        return
    few = batch.select(torch.arange(min(batch.size, _FEW)))
    before = trainer.predict(few).probabilities
    with torch.no_grad():
        # Negated, which moves every row, and is undone exactly.
        for table in tables:
            table.neg_()
        moved = trainer.predict(few).probabilities
        for table in tables:
            table.neg_()
    worst = max(relative_difference(moved[task], before[task]) for task in trainer.learned & before.keys())
    if worst > _TOLERANCE:
        names = ", ".join(map(table_of, taken.new_tables))
        raise ConfigError(
            f"models.{trainer.arm.base}.init_from: with the new table {names} the weights of the backbone do not fit: "
            f"predictions of the first batch depend on its rows, by up to {worst:.2g}, before any was learned. Start "
            "the backbone anew with fresh: [backbone]"
        )
