"""One plain function per operator; these are the reference that every other kernel is tested against.

All are differentiable and change no argument. Reductions and exponentials run in float32 when values are narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


def embed(weight: Tensor, indices: Tensor) -> Tensor:
    """Rows of `weight` [entries, width] that `indices` [rows] name."""
    return F.embedding(indices, weight)


def linear(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor:
    """[x @ weights[0].T + biases[0], x @ weights[1].T + ...] side by side; weights [out, in], biases [out]."""
    parts = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
    return torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis; Zhang and Sennrich 2019, arXiv 1910.07467."""
    wide = _at_least_float32(x)
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    return (normed * weight.to(wide.dtype)).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; Ba et al. 2016, arXiv 1607.06450."""
    wide = _at_least_float32(x)
    return F.layer_norm(wide, wide.shape[-1:], weight.to(wide.dtype), bias.to(wide.dtype), eps).to(x.dtype)


def rotary_tables(
    positions: Tensor, frequencies: Sequence[float], magnitude: float, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [rows, pairs] in float64 of position * frequencies[i] / factors[i], times `magnitude`.

    Computed on the processor, because not every device has float64 and float32 angles lose digits at far positions.
    """
    radians = torch.tensor(frequencies, dtype=torch.float64)
    if factors is not None:
        radians = radians / factors.to("cpu", torch.float64)
    angles = positions.to("cpu", torch.float64)[:, None] * radians
    return angles.cos() * magnitude, angles.sin() * magnitude


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


def attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    scale: float,
    *,
    window: int | None = None,
    softcap: float | None = None,
    is_causal: bool = True,
) -> Tensor:
    """Grouped attention of one sequence: query [rows, heads, d]; keys, values [tokens, kv_heads, d].

    Row r sees the tokens at positions 0 to positions[r], itself included, with `window` only the last `window` of them,
    and all tokens without `is_causal`; query head h reads key/value head h // (heads / kv_heads). Returns
    [rows, heads, d].
    """
    num_rows, num_heads, head_dim = query.shape
    num_tokens, num_kv_heads, _ = keys.shape
    grouped = query.reshape(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim)
    scores = _at_least_float32(torch.einsum("rkgd,tkd->kgrt", grouped, keys)) * scale
    if softcap is not None:
        scores = cap(scores, softcap)
    tokens = torch.arange(num_tokens, device=positions.device)
    is_hidden = tokens > positions[:, None] if is_causal else torch.zeros_like(tokens, dtype=torch.bool)
    if window is not None:
        is_hidden = is_hidden | (tokens <= positions[:, None] - window)
    probabilities = scores.masked_fill(is_hidden, -torch.inf).softmax(dim=-1).to(values.dtype)
    mixed = torch.einsum("kgrt,tkd->rkgd", probabilities, values)
    return mixed.reshape(num_rows, num_heads, head_dim)


def gated_activation(gate: Tensor, up: Tensor, activation: str) -> Tensor:
    """activation(gate) * up; Shazeer 2020, arXiv 2002.05202."""
    return ACTIVATIONS[activation](gate) * up


def activate(x: Tensor, activation: str) -> Tensor:
    """activation(x)."""
    return ACTIVATIONS[activation](x)


def cap(x: Tensor, limit: float) -> Tensor:
    """limit * tanh(x / limit): keeps x within (-limit, limit)."""
    return limit * torch.tanh(x / limit)


def mixture_of_experts(
    x: Tensor,
    router: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
    num_chosen: int,
    is_normalized: bool,
    activation: str,
) -> Tensor:
    """The `num_chosen` most probable experts of each row, weighted by their probability; arXiv 2401.04088.

    x [rows, width], router logits [rows, experts], gate and up [experts, ff, width], down [experts, width, ff].
    """
    probabilities = _at_least_float32(router).softmax(dim=-1)
    order = probabilities.sort(dim=-1, descending=True, stable=True).indices[:, :num_chosen]
    chosen = torch.zeros_like(probabilities).scatter(1, order, probabilities.gather(1, order))
    if is_normalized:
        chosen = chosen / chosen.sum(dim=-1, keepdim=True)
    y = torch.zeros_like(x)
    for expert in range(len(gate)):
        hidden = gated_activation(F.linear(x, gate[expert]), F.linear(x, up[expert]), activation)
        y = y + F.linear(hidden, down[expert]) * chosen[:, expert, None].to(x.dtype)
    return y


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
