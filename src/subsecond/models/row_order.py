"""The order of the channels of heads in the rows of a weight: pairs beside each other, or half a head apart."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.models.config import ModelConfig, Pairing
from subsecond.models.weights import StoredTensor

_ROTATED = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias", "attn_q_norm.weight", "attn_k_norm.weight")


def has_rotated_rows(name: str) -> bool:
    """Whether the rows of a weight are the channels of heads that are rotated."""
    return name.startswith("blk.") and name.split(".", 2)[2] in _ROTATED


def reorder_rows(tensor: StoredTensor, config: ModelConfig, pairing: Pairing) -> StoredTensor:
    """The weight, whose rows have the order `config.rope_pairing`, in the order `pairing`; blocks move as they are.

    Channel i of pair j is row 2 j + i of a head in the order "interleaved", and row j + i dims / 2 in the order "half".
    Rows that are not rotated stay.
    """
    if pairing == config.rope_pairing:
        return tensor
    num_rows = tensor.shape[0]
    if num_rows % config.head_dim:
        raise FormatError(f"a weight of {num_rows} rows has no whole number of heads of {config.head_dim} channels")
    order = row_order(config.head_dim, config.rope_dims, pairing)
    rows = (np.arange(num_rows // config.head_dim)[:, None] * config.head_dim + order).reshape(-1)
    return StoredTensor(tensor.type, tensor.shape, tensor.raw.reshape(num_rows, -1)[rows].reshape(-1))


def row_order(head_dim: int, rope_dims: int, pairing: Pairing) -> NDArray[np.int64]:
    """For each row of a head in the order `pairing`, the row in the other order [head_dim]."""
    order = np.arange(head_dim)
    rotated = order[:rope_dims]
    in_half = rotated.reshape(-1, 2).T.reshape(-1)
    order[:rope_dims] = in_half if pairing == "half" else rotated.reshape(2, -1).T.reshape(-1)
    return order
