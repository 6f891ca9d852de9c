"""The layer of HSTU.

Legend: E events of all examples, D width of an event, H heads, A width of a head's queries and keys, L width of its
values, V = H * L, C columns of queries, keys and values, P position buckets, S time buckets, b examples of a bucket, t
events of its longest, h = b * H, q of its newest events that get a result, Q such events of all examples.
"""

from __future__ import annotations

from math import ceil, exp

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exfm.components import JaggedSequence
from exfm.layers import NormName, norm
from exfm_plugins.encoders.hstu.buckets import map_buckets

_WHOLE, _BLOCK, _QUERIES = 1 << 23, 1 << 22, 512
"""Attention weights up to which a bucket is computed whole; otherwise the weights and the queries of a block of it."""

_LOG_STEP = 0.301
"""Width of a time bucket in the natural logarithm of seconds, from the authors' code."""

_LONGEST_AGE = (1 << 31) - 1
"""Seconds, some 68 years, that fit in 32 bits, so that differences of times take as much memory as scores."""


class HSTULayer(nn.Module):
    """``X' = X + f2(Norm(A V) * U)``, attention without softmax and with a gate in place of a feed-forward network.

    ``U, V, Q, K = split(SiLU(f1(Norm(X))))`` and ``A = SiLU(Q K^T + rab) / N``; an event sees no newer event.
    ``rab[i, j] = p[min(i - j, P - 1)] + s[min(floor(log(max(|t_i - t_j|, 1)) / 0.301), S - 1)]``, times in seconds.

    Args:
        dim: D.
        heads: H.
        attention_dim: A.
        linear_dim: L.
        position_buckets: P; 0 for no bias of positions.
        time_buckets: S; 0 for no bias of times.
        divisor: N; None for the number of events that an event sees.
        norm_name: of both norms.
        queries: the most recent events of an example that are kept; None for all.
    """

    least_seconds: Tensor

    def __init__(
        self,
        dim: int,
        heads: int,
        attention_dim: int,
        linear_dim: int,
        *,
        position_buckets: int,
        time_buckets: int,
        divisor: int | None,
        norm_name: NormName,
        queries: int | None,
    ) -> None:
        super().__init__()
        self.heads, self.divisor, self.queries = heads, divisor, queries
        self.widths = [heads * attention_dim, heads * attention_dim, heads * linear_dim]
        self.norm = norm(norm_name, dim)
        self.f1 = nn.Linear(dim, sum(self.widths) + heads * linear_dim)
        self.bias_P = nn.Parameter(0.02 * torch.randn(position_buckets)) if position_buckets else None
        self.time_bias_S = nn.Parameter(0.02 * torch.randn(time_buckets)) if time_buckets else None
        # The least number of seconds in each bucket after the first: floor(log(x) / 0.301) without logarithms of times.
        least = [min(ceil(exp(_LOG_STEP * bucket)), _LONGEST_AGE) for bucket in range(1, time_buckets)]
        self.register_buffer("least_seconds", torch.tensor(least, dtype=torch.int32), persistent=False)
        self.mixed_norm = norm(norm_name, heads * linear_dim)
        self.f2 = nn.Linear(heads * linear_dim, dim)

    def forward(self, sequence: JaggedSequence) -> JaggedSequence:
        """Maps events (E, D) to the events that are kept, (Q, D)."""
        kept = self._recent(sequence)
        projected_EC = nn.functional.silu(self.f1(self.norm(sequence.values_ED)))
        qkv_EC, gate_EV = torch.split(projected_EC, [sum(self.widths), self.widths[-1]], dim=1)
        mixed_QV = map_buckets(sequence.with_values(qkv_EC), kept, self._attend)
        gate_QV = self._recent(sequence.with_values(gate_EV)).values_ED
        gated_QV = self.mixed_norm(mixed_QV / self._divisor(sequence, kept)) * gate_QV
        return kept.with_values(kept.values_ED + self.f2(gated_QV))

    def _recent(self, sequence: JaggedSequence) -> JaggedSequence:
        return sequence if self.queries is None else sequence.recent(self.queries)

    def _divisor(self, sequence: JaggedSequence, kept: JaggedSequence) -> Tensor | int:
        if self.divisor is not None:
            return self.divisor
        return (sequence.lengths[kept.example_index()] - kept.positions()).unsqueeze(1)

    def _attend(self, qkv_btC: Tensor, ages_bt: Tensor | None) -> Tensor:
        """Maps Q, K and V (b, t, C) to ``SiLU(Q K^T + rab) V`` of the newest events, causal: (b, q, V)."""
        b, t = qkv_btC.shape[:2]
        q = t if self.queries is None else min(t, self.queries)
        query_btA, key_btA, value_btV = torch.split(qkv_btC, self.widths, dim=2)
        inputs = [self._by_head(tensor) for tensor in (query_btA[:, t - q :], key_btA, value_btV)]
        if self.time_bias_S is not None:
            assert ages_bt is not None
            inputs.append(ages_bt.clamp(max=_LONGEST_AGE).int().repeat_interleave(self.heads, dim=0))
        whole = torch.compiler.is_exporting() or b * self.heads * q * t <= _WHOLE
        mixed_hqL = self._mixed(*inputs) if whole else self._mixed_in_blocks(*inputs)
        return mixed_hqL.view(b, self.heads, *mixed_hqL.shape[1:]).transpose(1, 2).flatten(2)

    def _mixed(self, query_hqA: Tensor, key_htA: Tensor, value_htL: Tensor, ages_ht: Tensor | None = None) -> Tensor:
        """Computes ``SiLU(Q K^T + rab) V`` (h, q, L) for the queries of the newest of t events."""
        q, t = query_hqA.shape[1], key_htA.shape[1]
        scores_hqt = query_hqA @ key_htA.mT
        if self.bias_P is not None:
            scores_hqt = scores_hqt + self._position_bias(q, t).to(scores_hqt.dtype)
        if ages_ht is not None:
            scores_hqt = scores_hqt + self._time_bias(q, ages_ht).to(scores_hqt.dtype)
        # Values of padding are zeros, so their weights need no mask.
        weights_hqt = nn.functional.silu(scores_hqt).tril(t - q)
        return weights_hqt @ value_htL

    def _mixed_in_blocks(self, query_hqA: Tensor, *key_side: Tensor) -> Tensor:
        """Computes the same in blocks of queries, each over the keys that its newest query sees.

        The backward pass computes the weights again, so that memory is proportional to events and not to pairs of them.
        ``key_side`` are keys, values and, where there is a bias of times, ages.
        """
        q, t = query_hqA.shape[1], key_side[0].shape[1]
        block = max(1, min(q, _QUERIES, _BLOCK // t))
        heads = max(1, _BLOCK // (block * t))
        mixed = []
        for query, *keyed in zip(*(torch.split(tensor, heads) for tensor in (query_hqA, *key_side)), strict=True):
            seen, outputs = t - q, []
            for query_block in torch.split(query, block, dim=1):
                seen += query_block.shape[1]
                inputs = (query_block, *(tensor[:, :seen] for tensor in keyed))
                outputs.append(checkpoint(self._mixed, *inputs, use_reentrant=False, preserve_rng_state=False))
            mixed.append(torch.cat(outputs, dim=1))
        return torch.cat(mixed)

    def _by_head(self, tensor_btC: Tensor) -> Tensor:
        """Maps (b, t, H * C) to (b * H, t, C)."""
        by_head = tensor_btC.view(*tensor_btC.shape[:2], self.heads, tensor_btC.shape[2] // self.heads).transpose(1, 2)
        # Copied here, because `flatten` copies only for b > 1, and torch.export would specialise on a single example.
        return by_head.clone(memory_format=torch.contiguous_format).flatten(0, 1)

    def _position_bias(self, q: int, t: int) -> Tensor:
        """Returns the bias of queries and keys, by the number of events between them, (q, t)."""
        assert self.bias_P is not None
        index_t = torch.arange(t, device=self.bias_P.device)
        # A key newer than its query has a negative distance, and is not seen.
        distance_qt = (index_t[t - q :].unsqueeze(1) - index_t).clamp(0, len(self.bias_P) - 1)
        return self.bias_P.index_select(0, distance_qt.flatten()).view(q, t)

    def _time_bias(self, q: int, ages_ht: Tensor) -> Tensor:
        """Returns the bias of queries and keys, by the seconds between their events, (h, q, t)."""
        assert self.time_bias_S is not None
        t = ages_ht.shape[1]
        elapsed_hqt = (ages_ht.unsqueeze(1) - ages_ht[:, t - q :].unsqueeze(2)).abs()
        bucket_hqt = torch.bucketize(elapsed_hqt, self.least_seconds, right=True, out_int32=True)
        return self.time_bias_S.index_select(0, bucket_hqt.flatten()).view_as(bucket_hqt)
