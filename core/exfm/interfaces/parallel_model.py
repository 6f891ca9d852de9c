"""ParallelModel: a model that a parallel plan has placed, with the state that the plan keeps for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from exfm.interfaces.local_shards import StateTensor, copy_state


class ParallelModel(ABC):
    """Owns a placed model: synchronises its replicas in training, and gives its state, as its processes store it.

    A training step calls ``set_gradient_sync`` before each backward pass and ``sync_tables`` after it, then
    ``reduce_gradients``, and ``clip_gradients`` if the model clips, before the dense optimizer steps. The loss of a
    batch is the mean of the processes' losses, so gradients are averaged over the processes: those of tables in the
    backward pass, all others by ``reduce_gradients``.

    State has the names and shapes of a single process, so that another plan, on any number of processes, can resume
    from it. Each process saves and loads its own shards: no process needs memory for a whole sharded table.

    Attributes:
        module: the placed model.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def set_gradient_sync(self, enabled: bool) -> None:  # noqa: B027 - a single process has nothing to synchronise
        """Sets whether the next backward pass has to average dense gradients over the replicas.

        Args:
            enabled: False while gradients accumulate. A plan that reduces gradients in ``reduce_gradients`` alone
                ignores it.
        """

    def reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:  # noqa: B027
        """Averages gradients over the processes, unless the backward pass has averaged them.

        Args:
            parameters: those that the optimizer is about to step. A parameter that only other processes' rows reach
                has no gradient here, and gets the mean with zeros; one that no rows reach keeps none.
        """

    def clip_gradients(self, parameters: Sequence[nn.Parameter], max_norm: float) -> None:
        """Scales gradients down so that the norm of all of them together is at most ``max_norm``.

        Called after ``reduce_gradients``. A plan that shards parameters computes the norm over all shards, so that
        every process scales by the same factor.

        Args:
            parameters: those that the optimizer is about to step.
            max_norm: the largest norm.
        """
        nn.utils.clip_grad_norm_(parameters, max_norm)

    def sync_tables(self) -> None:  # noqa: B027
        """Synchronises the replicas of tables; called after every backward pass, as each updates the tables."""

    def reset_rows(self, table: str, rows: Tensor, source_rows: Tensor) -> None:
        """Reassigns table rows to new ids: copies weights from ``source_rows`` and zeroes the optimizer state.

        Called between steps, with the same rows on every process, wherever they are stored. A plan that sets
        ``resets_rows`` implements it.

        Args:
            table: the table's name in its collection.
            rows: (N,), without duplicates.
            source_rows: (N,), none of them in ``rows``.
        """
        raise NotImplementedError

    def take_changed_rows(self) -> dict[str, Tensor]:
        """Returns the rows that may have changed since the last call, ascending, by the name of the table.

        A table is left out where that is not known, as at the first call, and a snapshot has all of it. Every process
        returns the same tables and rows, whichever of them it stores, because each saves its boxes of these rows. By
        default no table is known. May be a collective.
        """
        return {}

    def state_dict(self) -> dict[str, StateTensor]:
        """Returns the module's state dict as this process stores it: writing into it sets the model.

        Names and shapes are those of a single process. A tensor that is sharded is a DTensor, a torch ``ShardedTensor``
        or ``exfm.parallel.LocalShards``; any other is whole, and equal on every process. May be a collective.
        """
        return dict(self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, StateTensor], strict: bool = True) -> None:
        """Copies whole tensors, or entries of ``state_dict``, into the model.

        Args:
            state: by name, on every process.
            strict: whether every entry must be present; otherwise missing entries stay as they are.

        Raises:
            RuntimeError: a name or a shape is not the model's.
        """
        current = self.state_dict()
        wrong = sorted(current.keys() ^ state.keys() if strict else state.keys() - current.keys())
        if wrong:
            raise RuntimeError(f"state dict: {wrong[0]} is in the model or in the weights, not in both")
        for name, value in state.items():
            copy_state(name, current[name], value)

    @abstractmethod
    def table_optimizer_state_dict(self) -> dict[str, StateTensor]:
        """Returns the table optimizer's state as ``state_dict`` does, by names that no plan or world size changes.

        A name contains the table's name and ``weight`` between dots (``table_user.weight``). The first dimension is the
        table's rows. May be a collective.
        """

    def table_optimizer_buffers(self) -> dict[str, StateTensor]:
        """Returns the tensors that a saved table optimizer's state is read into; by default the state itself.

        For a plan whose state has to be computed before it is saved.
        """
        return self.table_optimizer_state_dict()

    def load_table_optimizer_state_dict(self, state: Mapping[str, StateTensor]) -> None:
        """Copies whole tensors, or entries of ``table_optimizer_buffers``, into the table optimizer.

        Raises:
            KeyError, RuntimeError: it is the state of another optimizer.
        """
        for name, buffer in self.table_optimizer_buffers().items():
            copy_state(name, buffer, state[name])
