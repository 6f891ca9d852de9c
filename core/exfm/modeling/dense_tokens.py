"""Maps the dense features to tokens, and the numbers of events to vectors; both may be missing, as NaN.

Legend: B examples, N tokens, D width, W columns of all tokens, F dense features, H hidden units, E events, G numbers
per event, C counts, K moments, R processes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from exfm.interfaces.process_group import SINGLE_PROCESS, ProcessGroup


class DenseTokens(nn.Module):
    """Maps all dense features through a small MLP to tokens.

    Numbers arrive on any scale, so they are standardised by the mean and variance of the examples seen so far. The
    statistics move after the forward pass, so an example's prediction does not depend on its own batch.

    A number that is missing is NaN, and counts in no statistic. With ``mean`` it takes the mean, and adds a learned
    vector to the hidden units; with ``learned`` it takes a learned number, on the standardised scale.

    Args:
        features: F.
        tokens: N.
        dim: D.
        missing: for each feature how a missing number is filled, or None where none is missing; empty for none at all.

    Attributes:
        frozen: whether ``observe`` leaves the statistics as they are.
    """

    count: Tensor
    mean_F: Tensor
    square_F: Tensor
    missing_F: Tensor
    is_learned_F: Tensor

    def __init__(self, features: int, tokens: int, dim: int, missing: Sequence[str | None] = ()) -> None:
        super().__init__()
        self.tokens, self.dim = tokens, dim
        self.frozen = False
        hidden = max(32, 2 * dim)
        self.mlp = nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), nn.Linear(hidden, tokens * dim))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean_F", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("square_F", torch.zeros(features, dtype=torch.float64))
        # Tensors that a model without missing numbers lacks, so that its state stays as it was. Zeros and no draws, so
        # that other weights start equal, and a missing number counts as the mean until something is learned of it.
        self.fills = any(missing)
        if self.fills:
            self.register_buffer("missing_F", torch.zeros(features, dtype=torch.float64))
            is_learned_F = torch.tensor([how == "learned" for how in missing])
            self.register_buffer("is_learned_F", is_learned_F, persistent=False)
            self.fill_F = nn.Parameter(torch.zeros(features))
            self.indicator_HF = nn.Parameter(torch.zeros(hidden, features))

    def forward(self, dense_BF: Tensor) -> Tensor:
        """Maps (B, F) to tokens (B, tokens, D)."""
        count = self.count - self.missing_F if self.fills else self.count
        # At least 1e-6: a constant feature has no variance to divide by.
        variance_F = (self.square_F / count.clamp(min=1.0)).clamp(min=1e-6)
        variance_F = torch.where(count > 0, variance_F, torch.ones_like(variance_F))
        scale_F = variance_F.rsqrt().to(dense_BF.dtype)
        # Ten standard deviations at most, so that an outlier does not decide the batch's gradient (ours).
        scaled_BF = ((dense_BF - self.mean_F.to(dense_BF.dtype)) * scale_F).clamp(-10.0, 10.0)
        output_BW: Tensor = self._fill(dense_BF, scaled_BF) if self.fills else self.mlp(scaled_BF)
        return torch.unflatten(output_BW, -1, (self.tokens, self.dim))

    def _fill(self, dense_BF: Tensor, scaled_BF: Tensor) -> Tensor:
        """Returns the output of the MLP, with missing numbers filled."""
        is_missing_BF = dense_BF.isnan()
        # 0 is the mean of standardised numbers. The product with the mask keeps the other features' fill at 0.
        filled_BF = torch.where(is_missing_BF, self.fill_F * self.is_learned_F, scaled_BF)
        indicator_BF = (is_missing_BF & ~self.is_learned_F).to(scaled_BF.dtype)
        hidden_BH = self.mlp[0](filled_BF) + linear(indicator_BF, self.indicator_HF)
        output_BW: Tensor = self.mlp[2](self.mlp[1](hidden_BH))
        return output_BW

    @torch.no_grad()
    def observe(self, dense_BF: Tensor, process_group: ProcessGroup = SINGLE_PROCESS) -> None:
        """Adds a batch to the statistics (Chan et al. 1979); call it after the batch has been predicted.

        Args:
            dense_BF: this process's rows of the batch.
            process_group: the processes that share the batch.
        """
        if self.frozen:
            return
        # float64, because sums over a whole stream lose the small terms in float32.
        values_BF = dense_BF.to(torch.float64)
        if self.fills:
            self._observe_present(values_BF, process_group)
            return
        batch, mean_F, square_F = _moments(values_BF)
        if process_group.world_size > 1:
            moments_RK = process_group.all_gather(torch.cat([batch.unsqueeze(0), mean_F, square_F]))
            batch, mean_F, square_F = _merge_moments(*_split(moments_RK, 1))
            batch = batch.squeeze(0)
        if not batch:
            return
        delta_F = mean_F - self.mean_F
        total = self.count + batch
        self.square_F += square_F + delta_F**2 * self.count * batch / total
        self.mean_F += delta_F * batch / total
        self.count.copy_(total)

    def _observe_present(self, values_BF: Tensor, process_group: ProcessGroup) -> None:
        """Adds the numbers that are present to the statistics, with a count for each feature."""
        present_BF = ~values_BF.isnan()
        batch_F = present_BF.sum(dim=0, dtype=torch.float64)
        mean_F = values_BF.nan_to_num(0.0).sum(dim=0) / batch_F.clamp(min=1.0)
        square_F = (values_BF - mean_F).where(present_BF, 0.0).square().sum(dim=0)
        rows = torch.full_like(self.count, values_BF.shape[0])
        if process_group.world_size > 1:
            moments_RK = process_group.all_gather(torch.cat([rows.unsqueeze(0), batch_F, mean_F, square_F]))
            rows = moments_RK[:, 0].sum()
            batch_F, mean_F, square_F = _merge_moments(*_split(moments_RK[:, 1:], batch_F.numel()))
        count_F = self.count - self.missing_F
        total_F = count_F + batch_F
        # The share of the batch; 0 where a feature has no number yet.
        share_F = batch_F / total_F.clamp(min=1.0)
        delta_F = mean_F - self.mean_F
        self.square_F += square_F + delta_F**2 * count_F * share_F
        self.mean_F += delta_F * share_F
        self.missing_F += rows - batch_F
        self.count += rows


def _moments(values_BF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns count, mean (F,) and sum of squared distances from the mean (F,); zeros of no rows."""
    batch = torch.tensor(float(values_BF.shape[0]), dtype=torch.float64, device=values_BF.device)
    if not values_BF.shape[0]:
        return batch, values_BF.sum(dim=0), values_BF.sum(dim=0)
    mean_F = values_BF.mean(dim=0)
    return batch, mean_F, ((values_BF - mean_F) ** 2).sum(dim=0)


def _split(moments_RK: Tensor, counts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Splits each process's moments, K = counts + 2 F, into counts, means (R, F) and squares (R, F)."""
    features = (moments_RK.shape[1] - counts) // 2
    count_RC, mean_RF, square_RF = torch.split(moments_RK, [counts, features, features], dim=1)
    return count_RC, mean_RF, square_RF


def _merge_moments(count_RC: Tensor, mean_RF: Tensor, square_RF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merges the moments of all processes' rows; there is a count of all features together, or of each."""
    batch_C = count_RC.sum(dim=0)
    mean_F = (count_RC * mean_RF).sum(dim=0) / batch_C.clamp(min=1.0)
    return batch_C, mean_F, (square_RF + count_RC * (mean_RF - mean_F) ** 2).sum(dim=0)


class EventNumbers(nn.Linear):
    """Projects the numbers of events; a missing number, which is NaN, adds a learned vector in place of its term.

    Args:
        numbers: G.
        dim: D.
        missing: whether a number may be missing.
    """

    def __init__(self, numbers: int, dim: int, missing: bool) -> None:
        super().__init__(numbers, dim)
        self.fills = missing
        if missing:
            # Zeros and no draw, as for dense features.
            self.indicator_DG = nn.Parameter(torch.zeros(dim, numbers))

    def prepare(self, numbers_EG: Tensor) -> Tensor:
        """Returns the inputs of ``forward``, which may be averaged: the numbers, and which of them are missing."""
        if not self.fills:
            return numbers_EG
        is_missing_EG = numbers_EG.isnan()
        return torch.cat([numbers_EG.masked_fill(is_missing_EG, 0.0), is_missing_EG.to(numbers_EG.dtype)], dim=1)

    def forward(self, prepared: Tensor) -> Tensor:
        """Maps inputs that were prepared to vectors (..., D)."""
        if not self.fills:
            return super().forward(prepared)
        return linear(prepared, torch.cat([self.weight, self.indicator_DG], dim=1), self.bias)
