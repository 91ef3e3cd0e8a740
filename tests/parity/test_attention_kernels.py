"""The attention kernels of every instruction set: plain softmax attention, whatever rows are beside a row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from tests.parity.kernel_cases import ISAS, Floats, misaligned, rotary_table, rotate, round_f16


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
        split: bool = False,
    ) -> Floats:
        num_rows = len(self.query)
        table = rotary_table(num_rows, self.head_dim)
        order = blocks or list(range(-(-num_rows // 32)))[::-1]
        output = misaligned(np.full(self.query.shape, np.nan, np.float32))
        _native.kernels.attention(
            isa, self.query, self.key, self.value, np.array(order, np.int32), self.num_heads, self.num_kv_heads,
            self.head_dim, form.scale or self.head_dim**-0.5, table.reshape(-1), self.head_dim, pairs, first, chunk,
            form.window, form.softcap, form.is_causal, split, output,
        )  # fmt: skip
        return output[first:]

    def reference(self, form: Form = PLAIN, *, pairs: bool = True) -> NDArray[np.float64]:
        num_rows, d = len(self.query), self.head_dim
        table, positions = rotary_table(num_rows, d), np.arange(num_rows)
        q = rotate(self.query.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs)
        k = rotate(self.key.reshape(num_rows, -1, d), table, positions, is_interleaved=pairs, dtype=np.float32)
        v = self.value.reshape(num_rows, -1, d)
        stored = [np.repeat(round_f16(x).astype(np.float64), self.num_heads // self.num_kv_heads, 1) for x in (k, v)]
        scores = np.einsum("qhd,khd->hqk", q, stored[0]) * (form.scale or d**-0.5)
        if form.softcap:
            scores = form.softcap * np.tanh(scores / form.softcap)
        distance = positions[:, None] - positions
        is_hidden = (distance < 0) & form.is_causal | (distance >= form.window) & (form.window > 0)
        scores[:, is_hidden] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return np.asarray(np.einsum("hqk,khd->qhd", weights, stored[1]).reshape(num_rows, -1))


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


# --- what is stored -------------------------------------------------------------------------------------------------

HALF_ISAS = [isa for isa in ISAS if isa != "amx"]
ODD_VALUES = np.array(
    [0.0, -0.0, 1e-9, 2.0**-25, 2.0**-25 * 1.0001, 3 * 2.0**-25, 6.1e-5, -6.10351e-5, 1 + 2.0**-11, 1 + 3 * 2.0**-11,
     65503.9, 65504, 65519.99, 65520, -65520, 7e4, -1e38, np.inf, -np.inf, np.nan],
    np.float32,
)  # fmt: skip


@pytest.mark.parametrize("isa", HALF_ISAS)
def test_values_are_stored_in_half_precision(isa: str) -> None:
    """A row that sees one position gives what was stored of its value."""
    random_bits = np.random.default_rng(2).integers(0, 2**32, 4076, dtype=np.uint32).view(np.float32)
    value = np.concatenate([ODD_VALUES, random_bits]).reshape(16, 256)
    key = np.random.default_rng(3).standard_normal(value.shape, dtype=np.float32)
    case = Case(key, key, value, 1, 1, 256)
    expected = round_f16(value)
    for chunk in (1, 16):
        output = case.run(isa, Form(window=1), chunk=chunk)
        np.testing.assert_array_equal(np.isnan(output), np.isnan(expected))
        np.testing.assert_array_equal(output[~np.isnan(output)], expected[~np.isnan(expected)])


@pytest.mark.parametrize("isa", HALF_ISAS)
def test_keys_beyond_half_precision_are_the_largest(isa: str) -> None:
    case = Case.random(40, 3, 1, 64)
    case.query[:] = np.abs(case.query)
    case.key[:] *= 1e-3
    case.key[7], case.key[20] = 1e38, -1e38
    output = case.run(isa, Form(scale=1e-6), first=7)
    np.testing.assert_allclose(output, case.reference(Form(scale=1e-6))[7:], atol=1e-5)


# --- rows, heads and positions that are shared in other ways --------------------------------------------------------


@pytest.mark.parametrize("isa", HALF_ISAS)
@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (8, 2)])
def test_every_number_of_rows_gives_the_same_bits(isa: str, heads: tuple[int, int]) -> None:
    case = Case.random(70, *heads, 16)
    whole = case.run(isa)
    for chunk in range(1, 27):
        np.testing.assert_array_equal(case.run(isa, chunk=chunk), whole)


@pytest.mark.parametrize("isa", ISAS)
def test_more_heads_than_a_batch_holds(isa: str) -> None:
    case = Case.random(34, 150, 1, 16)
    np.testing.assert_allclose(case.run(isa), case.reference(), atol=0.03 if isa == "amx" else 5e-6)
    np.testing.assert_array_equal(case.run(isa, chunk=3), case.run(isa))


LONG_FORMS = (PLAIN, Form(window=40), Form(window=300), Form(softcap=2.0), Form(is_causal=False))


@pytest.mark.parametrize("form", LONG_FORMS)
@pytest.mark.parametrize("isa", ISAS)
def test_many_positions_against_softmax(isa: str, form: Form) -> None:
    for length in (256, 257, 600):
        case = Case.random(length, 6, 2, 24)
        first = 0 if form.window else length - 40
        atol = 0.03 if isa == "amx" else 5e-6
        np.testing.assert_allclose(case.run(isa, form, first=first), case.reference(form)[first:], atol=atol)


@pytest.mark.parametrize("form", LONG_FORMS)
@pytest.mark.parametrize("isa", HALF_ISAS)
def test_splitting_positions_keeps_every_bit(isa: str, form: Form) -> None:
    for length in (256, 257, 600):
        case = Case.random(length, 6, 2, 24)
        for first in (length - 40, length - 1):
            whole = case.run(isa, form, first=first)
            np.testing.assert_array_equal(case.run(isa, form, first=first, split=True), whole)
            np.testing.assert_array_equal(case.run(isa, form, first=first, split=True, chunk=1), whole)
            np.testing.assert_array_equal(case.run("scalar", form, first=first), whole)


@pytest.mark.parametrize("isa", HALF_ISAS)
def test_what_a_row_does_not_see_may_be_anything(isa: str) -> None:
    """Later positions and those before the window, in the same block too."""
    for form in (PLAIN, Form(window=20)):
        case = Case.random(100, 6, 2, 64)
        expected = case.run(isa, form)[:61]
        case.key[61:], case.value[61:] = np.nan, np.inf
        case.value[80:] = np.nan
        np.testing.assert_array_equal(case.run(isa, form)[:61], expected)
    expected = case.run(isa, form, first=60)[:1]
    case.key[:41], case.value[:41] = np.nan, np.nan
    np.testing.assert_array_equal(case.run(isa, form, first=60)[:1], expected)
