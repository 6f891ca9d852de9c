"""Stores the rows of embedding tables as whole numbers of 8 bits, each row with a scale and an offset of its own.

Legend: R rows, D width, V ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from exfm.modeling.parts import table_of

TableFormat = Literal["fp32", "int8"]


@dataclass(frozen=True)
class QuantisedTable:
    """Holds the rows of a table.

    Attributes:
        codes_RD: whole numbers from 0 to 255.
        scales_R2: scale and offset of each row.
    """

    codes_RD: Tensor
    scales_R2: Tensor

    def dequantise(self) -> Tensor:
        """Returns the rows in single precision, (R, D)."""
        return dequantise(self.codes_RD, self.scales_R2)


def quantise(rows_RD: Tensor) -> QuantisedTable:
    """Quantises rows with FBGEMM, as TorchRec's tables of 8 bits do."""
    # The kernel takes single precision, row after row in memory.
    fused = torch.ops.fbgemm.FloatToFused8BitRowwiseQuantized(rows_RD.float().contiguous())
    width = rows_RD.shape[1]
    # FBGEMM appends scale and offset to a row's codes, in the bytes of two numbers of single precision.
    scales_R2 = fused[:, width:].contiguous().view(torch.float32)
    return QuantisedTable(fused[:, :width].contiguous(), scales_R2)


def dequantise(codes_VD: Tensor, scales_V2: Tensor) -> Tensor:
    """Returns rows in single precision, (V, D)."""
    return codes_VD.float() * scales_V2[:, :1] + scales_V2[:, 1:]


def quantise_tables(weights: Mapping[str, Tensor]) -> dict[str, QuantisedTable]:
    """Quantises the tables among a model's weights, by key."""
    tables: dict[str, QuantisedTable] = {}
    for key, value in weights.items():
        if table_of(key):
            tables[key] = quantise(value)
    return tables
