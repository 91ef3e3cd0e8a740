"""The attention kernels of every instruction set: plain softmax attention, whatever rows are beside a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from tests.parity.kernel_cases import ISAS, Floats, misaligned, rotary_table, rotate


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
    ) -> Floats:
        num_rows = len(self.query)
        table = rotary_table(num_rows, self.head_dim)
        order = blocks or list(range(-(-num_rows // 32)))[::-1]
        output = misaligned(np.full(self.query.shape, np.nan, np.float32))
        _native.kernels.attention(
            isa, self.query, self.key, self.value, np.array(order, np.int32), self.num_heads, self.num_kv_heads,
            self.head_dim, form.scale or self.head_dim**-0.5, table.reshape(-1), self.head_dim, pairs, first, chunk,
            form.window, form.softcap, form.is_causal, output,
        )  # fmt: skip
        return output[first:]

    def reference(self, form: Form = PLAIN, *, pairs: bool = True) -> NDArray[np.float64]:
        num_rows, d = len(self.query), self.head_dim
        table, positions = rotary_table(num_rows, d), np.arange(num_rows)
        q = rotate(self.query.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs)
        k = rotate(self.key.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs)
        v = self.value.reshape(num_rows, -1, d).astype(np.float64)
        k, v = (np.repeat(x, self.num_heads // self.num_kv_heads, 1) for x in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) * (form.scale or d**-0.5)
        if form.softcap:
            scores = form.softcap * np.tanh(scores / form.softcap)
        distance = positions[:, None] - positions
        is_hidden = (distance < 0) & form.is_causal | (distance >= form.window) & (form.window > 0)
        scores[:, is_hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.asarray(np.einsum("hqk,khd->qhd", weights, v).reshape(num_rows, -1))


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


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_against_softmax(isa: str, shape: tuple[int, int, int, int]) -> None:
    case = Case.random(*shape)
    for pairs in (True, False):
        atol = 0.03 if isa == "amx" else 5e-6
        np.testing.assert_allclose(case.run(isa, pairs=pairs), case.reference(pairs=pairs), atol=atol)


@pytest.mark.parametrize("form", FORMS + WHOLE)
@pytest.mark.parametrize("isa", ISAS)
def test_forms_against_softmax(isa: str, form: Form) -> None:
    for shape in ((33, 9, 3, 64), (65, 4, 4, 40), (130, 6, 2, 80)):
        case = Case.random(*shape)
        atol = 0.04 if isa == "amx" else 1e-5
        np.testing.assert_allclose(case.run(isa, form), case.reference(form), atol=atol)


@pytest.mark.parametrize("form", FORMS + WHOLE)
@pytest.mark.parametrize("isa", ISAS)
def test_forms_row_never_depends_on_rows_beside_it(isa: str, form: Form) -> None:
    for shape in ((33, 9, 3, 64), (130, 6, 2, 80)):
        case = Case.random(*shape)
        whole = case.run(isa, form)
        for chunk in (1, 3, 16):
            np.testing.assert_array_equal(case.run(isa, form, chunk=chunk), whole)
        np.testing.assert_array_equal(case.run(isa, form, first=len(whole) - 1), whole[-1:])


@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_before_the_window_is_never_read(isa: str) -> None:
    """Whole blocks before the window may hold anything, even NaN."""
    case = Case.random(100, 6, 2, 64)
    expected = case.run(isa, Form(window=20), first=96)
    case.key[:64], case.value[:64] = np.nan, np.nan
    np.testing.assert_array_equal(case.run(isa, Form(window=20), first=96), expected)


@pytest.mark.parametrize("form", FORMS + WHOLE)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in ("scalar", "amx")])
def test_f32_forms_have_the_bits_of_scalar(isa: str, form: Form) -> None:
    case = Case.random(70, 14, 2, 40)
    np.testing.assert_array_equal(case.run(isa, form), case.run("scalar", form))


@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa not in ("scalar", "amx")])
def test_f32_attention_has_the_bits_of_scalar(isa: str) -> None:
    for shape in SHAPES:
        case = Case.random(*shape)
        np.testing.assert_array_equal(case.run(isa), case.run("scalar"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_row_never_depends_on_rows_beside_it(isa: str, shape: tuple[int, int, int, int]) -> None:
    case = Case.random(*shape)
    whole = case.run(isa)
    np.testing.assert_array_equal(case.run(isa, chunk=1), whole)
    np.testing.assert_array_equal(case.run(isa, chunk=3), whole)
    np.testing.assert_array_equal(case.run(isa, first=len(whole) - 1), whole[-1:])


@pytest.mark.parametrize("isa", ISAS)
def test_attention_follows_the_block_table(isa: str) -> None:
    case = Case.random(100, 6, 2, 64)
    np.testing.assert_array_equal(case.run(isa, blocks=[5, 1, 7, 0]), case.run(isa, blocks=[0, 1, 2, 3]))
