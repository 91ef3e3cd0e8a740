"""One plain function per operator; these are the reference that every other kernel is tested against.

All are differentiable and change no argument. Reductions and exponentials run in float32 when values are narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu}


def embed(weight: Tensor, token_ids: Tensor) -> Tensor:
    """Rows of `weight` [vocab, width] that `token_ids` [rows] name."""
    return F.embedding(token_ids, weight)


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """[x @ weights[0].T + biases[0], x @ weights[1].T + ...] side by side; weights [out, in], biases [out]."""
    parts = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; Zhang and Sennrich 2019, arXiv 1910.07467."""
    wide = _at_least_float32(x)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(wide.dtype)).to(x.dtype)


def rotary_tables(positions: Tensor, theta: float, dims: int, factors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, dims / 2] in float64 of position * theta^(-2i / dims) / factors[i].

    Computed on the processor, because not every device has float64 and float32 angles lose digits at far positions.
    """
    exponents = torch.arange(0, dims, 2, dtype=torch.float64) / dims
    frequencies = theta**-exponents
    if factors is not None:
        frequencies = frequencies / factors.to("cpu", torch.float64)
    angles = positions.to("cpu", torch.float64)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rope(x: Tensor, cosines: Tensor, sines: Tensor, pairing: Literal["interleaved", "half"]) -> Tensor:
    """Rotate the first 2 * pairs channels of every head of x [rows, heads, head_dim]; tables [rows, pairs].

    Pair i is channels (2i, 2i + 1) when "interleaved", (i, i + pairs) when "half"; the other channels stay. Su et al.
    2021, arXiv 2104.09864.
    """
    num_pairs = cosines.shape[-1]
    wide = _at_least_float32(x)
    cosines, sines = cosines.to(wide.dtype)[:, None], sines.to(wide.dtype)[:, None]
    rotated, rest = wide[..., : 2 * num_pairs], wide[..., 2 * num_pairs :]
    if pairing == "interleaved":
        left, right = rotated[..., 0::2], rotated[..., 1::2]
    else:
        left, right = rotated[..., :num_pairs], rotated[..., num_pairs:]
    pair = left * cosines - right * sines, right * cosines + left * sines
    rotated = torch.stack(pair, dim=-1).flatten(-2) if pairing == "interleaved" else torch.cat(pair, dim=-1)
    return torch.cat((rotated, rest), dim=-1).to(x.dtype)


def attention(query: Tensor, keys: Tensor, values: Tensor, positions: Tensor, scale: float) -> Tensor:
    """Causal grouped attention of one sequence: query [rows, heads, d]; keys, values [tokens, kv_heads, d].

    Row r sees the tokens at positions 0 to positions[r], itself included; query head h reads key/value head
    h // (heads / kv_heads). Returns [rows, heads, d].
    """
    num_rows, num_heads, head_dim = query.shape
    num_tokens, num_kv_heads, _ = keys.shape
    grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = _at_least_float32(torch.einsum("rkgd,tkd->kgrt", grouped, keys)) * scale
    is_hidden = torch.arange(num_tokens, device=positions.device) > positions[:, None]
    probabilities = scores.masked_fill(is_hidden, -torch.inf).softmax(dim=-1).to(values.dtype)
    mixed = torch.einsum("kgrt,tkd->rkgd", probabilities, values)
    return mixed.reshape(num_rows, num_heads, head_dim)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up; Shazeer 2020, arXiv 2002.05202."""
    return ACTIVATIONS[activation](gate) * up


def add(left: Tensor, right: Tensor) -> Tensor:
    """left + right."""
    return left + right


def split(x: Tensor, start: int, end: int) -> Tensor:
    """Columns [start, end)."""
    return x[:, start:end]


def select_rows(x: Tensor, rows: Tensor) -> Tensor:
    """The rows that `rows` names, in that order."""
    return x.index_select(0, rows)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
