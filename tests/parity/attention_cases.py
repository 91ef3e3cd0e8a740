"""Cases of attention and what they come to in plain numpy, for keys and values of every type; tests nothing itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond import _native
from tests.parity.kernel_cases import Floats, misaligned, rotary_table, rotate, round_f16

Float64 = NDArray[np.float64]
# Keys and values [rows, heads, head_dim] as they are read back.
Stored = Callable[[Floats, Floats], tuple[Float64, Float64]]


@dataclass(frozen=True)
class Form:
    """What an attention may have beside its shape; see subsecond.graph.ops.Attention."""

    window: int = 0
    softcap: float = 0.0
    is_causal: bool = True
    scale: float | None = None


PLAIN = Form()
FORMS = (Form(window=1), Form(window=40), Form(softcap=2.0), Form(window=33, softcap=0.7), Form(scale=0.31))
WHOLE = (Form(is_causal=False), Form(is_causal=False, softcap=1.0))


def stored_f16(key: Floats, value: Floats) -> tuple[Float64, Float64]:
    """Half precision."""
    return round_f16(key).astype(np.float64), round_f16(value).astype(np.float64)


@dataclass(frozen=True)
class Case:
    """Queries, keys and values of one sequence from position 0."""

    query: Floats
    key: Floats
    value: Floats
    num_heads: int
    num_kv_heads: int
    head_dim: int

    @classmethod
    def random(cls, num_rows: int, num_heads: int, num_kv_heads: int, head_dim: int, seed: int = 1) -> Case:
        rng = np.random.default_rng(seed)
        shapes = (num_heads, num_kv_heads, num_kv_heads)
        q, k, v = (misaligned(rng.standard_normal((num_rows, h * head_dim), dtype=np.float32)) for h in shapes)
        return cls(q, k, v, num_heads, num_kv_heads, head_dim)

    def run(
        self,
        isa: str,
        form: Form = PLAIN,
        *,
        first: int = 0,
        chunk: int = 1000,
        blocks: list[int] | None = None,
        pairs: bool = True,
        split: bool = False,
        kv: str = "",
    ) -> Floats:
        num_rows = len(self.query)
        table = rotary_table(num_rows, self.head_dim)
        order = blocks or list(range(-(-num_rows // 32)))[::-1]
        output = misaligned(np.full(self.query.shape, np.nan, np.float32))
        _native.kernels.attention(
            isa, kv, self.query, self.key, self.value, np.array(order, np.int32), self.num_heads, self.num_kv_heads,
            self.head_dim, form.scale or self.head_dim**-0.5, table.reshape(-1), self.head_dim, pairs, first, chunk,
            form.window, form.softcap, form.is_causal, split, output,
        )  # fmt: skip
        return output[first:]

    def reference(self, form: Form = PLAIN, *, pairs: bool = True, stored: Stored = stored_f16) -> Float64:
        num_rows, d = len(self.query), self.head_dim
        table, positions = rotary_table(num_rows, d), np.arange(num_rows)
        q = rotate(self.query.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs)
        k = rotate(self.key.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs, dtype=np.float32)
        v = self.value.reshape(num_rows, -1, d)
        keys, values = (
            np.repeat(x, self.num_heads // self.num_kv_heads, 1) for x in stored(np.asarray(k, np.float32), v)
        )
        scores = np.einsum("qhd,khd->hqk", q, keys) * (form.scale or d**-0.5)
        if form.softcap:
            scores = form.softcap * np.tanh(scores / form.softcap)
        distance = positions[:, None] - positions
        is_hidden = (distance < 0) & form.is_causal | (distance >= form.window) & (form.window > 0)
        scores[:, is_hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.asarray(np.einsum("hqk,khd->qhd", weights, values).reshape(num_rows, -1))


SHAPES = [
    (1, 2, 1, 64),
    (33, 9, 3, 64),
    (70, 14, 2, 64),
    (65, 4, 4, 40),
    (40, 20, 1, 128),
    (31, 3, 1, 6),
    (130, 6, 2, 80),
    (35, 4, 2, 256),
]
