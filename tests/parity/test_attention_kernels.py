"""The attention kernels of every instruction set: plain softmax attention, whatever rows are beside a row."""

from __future__ import annotations

import numpy as np
import pytest

from tests.parity.attention_cases import FORMS, PLAIN, SHAPES, WHOLE, Case, Form
from tests.parity.kernel_cases import ISAS, round_f16


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
