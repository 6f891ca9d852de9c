"""Provides modules for multi-head attention.

Legend: B examples, Q queries, N keys, E events of all examples, D width, K learned queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exfm.interfaces.jagged import JaggedSequence
from exfm.layers.jagged_attention import jagged_attention
from exfm.layers.rotary import rotate


class Attention(nn.Module):
    """Computes multi-head attention of dense tokens over dense tokens (arXiv 1706.03762).

    Args:
        dim: D.
        heads: number of heads, a divisor of D.
        bias: whether the projections have biases.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = _checked(dim, heads)
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, query_BQD: Tensor, keys_BND: Tensor) -> Tensor:
        """Maps queries (B, Q, D) and keys (B, N, D) to (B, Q, D)."""
        key_BND, value_BND = self.key_value(keys_BND).chunk(2, dim=-1)
        projected = (self.query(query_BQD), key_BND, value_BND)
        heads = [x_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x_BTD in projected]
        mixed_BHQC = nn.functional.scaled_dot_product_attention(*heads)
        output_BQD: Tensor = self.out(mixed_BHQC.transpose(1, 2).flatten(2))
        return output_BQD


class JaggedAttention(nn.Module):
    """Computes multi-head self-attention over each example's events.

    Args:
        dim: D.
        heads: number of heads, a divisor of D.
        causal: whether an event sees only itself and older events.
        rotary: whether queries and keys get rotary position embeddings (arXiv 2104.09864).
        bias: whether the projections have biases.

    Raises:
        ValueError: the heads do not divide the width, or leave an odd width to ``rotary``.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool, rotary: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.heads = _checked(dim, heads, even=rotary)
        self.causal, self.rotary = causal, rotary
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, sequence: JaggedSequence, queries: int | None = None) -> JaggedSequence:
        """Maps events (E, D) to events of the same examples.

        Args:
            sequence: the events.
            queries: number of most recent events of an example that are queries, over all of its events (arXiv
                2510.26104); the result has only these events. By default all events are queries.
        """
        querying = sequence if queries is None else sequence.recent(queries)
        query_QD = self.query(querying.values_ED)
        key_ED, value_ED = self.key_value(sequence.values_ED).chunk(2, dim=-1)
        if self.rotary:
            # Count from the newest event, because the oldest of the queries is not the oldest of the keys.
            query_QD = rotate(query_QD, -querying.positions(), self.heads)
            key_ED = rotate(key_ED, -sequence.positions(), self.heads)
        query, key = querying.with_values(query_QD), sequence.with_values(key_ED)
        mixed = jagged_attention(query, key, value_ED, self.heads, causal=self.causal)
        return mixed.with_values(self.out(mixed.values_ED))


class AttentionPooling(nn.Module):
    """Pools each example's events by multi-head attention of learned queries (PMA, arXiv 1810.00825).

    Args:
        dim: D.
        heads: number of heads, a divisor of D.
        queries: K.
        bias: whether the projections have biases.

    Raises:
        ValueError: the heads do not divide the width.
    """

    def __init__(self, dim: int, heads: int, queries: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = _checked(dim, heads)
        self.query_KD = nn.Parameter(torch.randn(queries, dim) * dim**-0.5)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)

    def forward(self, sequence: JaggedSequence, shift_BD: Tensor | None = None) -> Tensor:
        """Maps events (E, D) to tokens (B, K, D); the tokens of an example without events are the output bias.

        Args:
            sequence: the events.
            shift_BD: added to each of an example's queries.
        """
        count, size = self.query_KD.shape[0], sequence.batch_size
        offsets = count * torch.arange(size + 1, device=sequence.offsets.device)
        key_ED, value_ED = self.key_value(sequence.values_ED).chunk(2, dim=-1)
        # Repeat instead of expand: when an expanded dimension is flattened, torch.export specializes on batches of 1.
        query_BKD = self.query_KD.repeat(size, 1, 1)
        if shift_BD is not None:
            query_BKD = query_BKD + shift_BD.unsqueeze(1)
        queries = JaggedSequence(query_BKD.to(key_ED.dtype).flatten(0, 1), offsets, count)
        mixed = jagged_attention(queries, sequence.with_values(key_ED), value_ED, self.heads, causal=False)
        tokens_BKD: Tensor = self.out(mixed.values_ED).unflatten(0, (size, count))
        return tokens_BKD


def _checked(dim: int, heads: int, *, even: bool = False) -> int:
    """Returns the number of heads after checking that it divides the width."""
    if dim % heads or (even and dim // heads % 2):
        share = "an even number of" if even else "whole"
        raise ValueError(f"{heads} heads do not divide a width of {dim} into {share} columns each")
    return heads
