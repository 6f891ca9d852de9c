"""ParallelModel: a model that a parallel plan has placed, with the state that the plan keeps for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn

from exfm.mappings import map_values


class ParallelModel(ABC):
    """Owns a placed model: synchronises its replicas in training, and converts its state to full tensors and back.

    A training step calls ``set_gradient_sync`` before each backward pass and ``sync_tables`` after it, then
    ``reduce_gradients``, and ``clip_gradients`` if the model clips, before the dense optimizer steps. Every process
    computes the loss over the whole batch, so gradients are averaged over the processes: those of tables in the
    backward pass, all others by ``reduce_gradients``.

    Saved state is whole: it has the names and shapes of a single process, so that another plan, on any number of
    processes, can resume from it.

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
            parameters: those that the optimizer is about to step. A parameter without a gradient has none on any
                process.
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

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the module's state dict, whole, on the CPU; on any rank but 0 entries may be missing."""
        return map_values(self.full_tensor, self.module.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor], strict: bool = True) -> None:
        """Loads rank 0's ``state_dict``.

        Args:
            state: whole, on every process.
            strict: whether every entry must be present; otherwise missing entries stay as they are.
        """
        self.module.load_state_dict(dict(state), strict=strict)

    @abstractmethod
    def table_optimizer_state_dict(self) -> dict[str, Tensor]:
        """Returns the table optimizer's state, whole, on the CPU, by names that no plan or world size changes.

        A name contains the table's name and ``weight`` between dots (``table_user.weight``). The first dimension is the
        table's rows. On any rank but 0 entries may be missing.
        """

    @abstractmethod
    def load_table_optimizer_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Loads rank 0's ``table_optimizer_state_dict``."""

    def table_optimizer_buffers(self) -> dict[str, Tensor]:
        """Returns the tensors of the table optimizer that this process stores whole, by the names of its state dict.

        A snapshot is read into them, so that a large table is not in memory twice; by default there are none.
        """
        return {}

    def full_tensor(self, tensor: Tensor) -> Tensor:
        """Gathers a parameter, or a tensor that an optimizer keeps for a parameter, whole, on the CPU."""
        return tensor.detach().cpu()

    def distribute_tensor(self, value: Tensor, parameter: Tensor) -> Tensor:
        """Copies this process's shard of a whole tensor that an optimizer keeps for a parameter."""
        # Copied, because the optimizer updates its state in place and the loaded tensor may be shared.
        return value.to(parameter.device, copy=True)
