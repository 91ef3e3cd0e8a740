"""Attention over keys and values in codes of eight bits: what is stored, its loss, and the same bits in every way."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond import _native
from tests.parity.attention_cases import FORMS, PLAIN, WHOLE, Case, Float64, Form
from tests.parity.kernel_cases import ISAS, Floats, round_f16

SHAPES = [
    (1, 2, 1, 64),
    (33, 9, 3, 64),
    (70, 14, 2, 32),
    (65, 4, 4, 40),
    (40, 20, 1, 128),
    (31, 3, 1, 6),
    (33, 3, 3, 10),
    (130, 6, 2, 80),
    (50, 6, 2, 96),
    (50, 4, 1, 100),
    (35, 4, 2, 256),
]
FAST_ISAS = [isa for isa in ISAS if isa != "scalar"]
MAX_MIXED = 12  # blocks, see native/rotation.h


def turn(x: Floats) -> Floats:
    """The rotation of native/rotation.h over the last axis, rounded to float32 where the kernels round."""
    width = x.shape[-1]
    block = width & -width
    rows = x.astype(np.float32).reshape(-1, width // block, block)
    step = 1
    while step < block:
        pairs = rows.reshape(len(rows), -1, 2, step)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        rows = np.stack([first + second, first - second], 2).reshape(rows.shape)
        step *= 2
    count = width // block
    if block >= 16 and 1 < count <= MAX_MIXED:
        angles = 2 * np.pi * (np.outer(np.arange(count), np.arange(count)) % count) / count
        matrix = (np.cos(angles) + np.sin(angles)).astype(np.float32).astype(np.float64)
        sums = (matrix[:, 0, None] * rows[:, None, 0]).astype(np.float32)
        for j in range(1, count):
            sums = (matrix[:, j, None] * rows[:, None, j].astype(np.float64) + sums).astype(np.float32)
        rows = sums
    return rows.reshape(x.shape)


def turned_factor(width: int) -> int:
    """What the rotation applied twice multiplies by."""
    block = width & -width
    count = width // block
    return width if block >= 16 and count <= MAX_MIXED else block


def codes_of(x: Floats) -> tuple[Floats, Floats]:
    """Codes of eight bits over the last axis, and their factors."""
    bounded = np.clip(x, -65504, 65504).astype(np.float32)
    largest = np.abs(bounded).max(-1, keepdims=True)
    inverse = np.float32(127) / np.where(largest > 1e-30, largest, np.float32(np.inf))
    return np.rint(bounded * inverse), np.where(largest > 1e-30, largest * np.float32(1 / 127), np.float32(0))


def stored_int8(key: Floats, value: Floats) -> tuple[Float64, Float64]:
    """Keys rotated, rounded relative to the first of their block of 32 and rotated back; values rounded."""
    turned = turn(np.clip(key, -65504, 65504))
    origins = round_f16(np.nan_to_num(turned, nan=0.0))[np.arange(len(key)) // 32 * 32]
    codes, factors = codes_of(turned - origins)
    matrix = np.stack([turn(row) for row in np.eye(key.shape[-1], dtype=np.float32)]).astype(np.float64)
    keys = (codes.astype(np.float64) * factors + origins) @ matrix / turned_factor(key.shape[-1])
    value_codes, value_factors = codes_of(value)
    return keys, value_codes.astype(np.float64) * value_factors


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_attention_against_plain_numpy(isa: str, shape: tuple[int, int, int, int]) -> None:
    case = Case.random(*shape)
    for pairs in (True, False):
        expected = case.reference(pairs=pairs, stored=stored_int8)
        np.testing.assert_allclose(case.run(isa, pairs=pairs, kv="int8"), expected, atol=1e-5)


@pytest.mark.parametrize("form", FORMS + WHOLE)
@pytest.mark.parametrize("isa", ISAS)
def test_forms_against_plain_numpy(isa: str, form: Form) -> None:
    for shape in ((33, 9, 3, 64), (65, 4, 4, 40), (130, 6, 2, 80), (50, 4, 1, 100)):
        case = Case.random(*shape)
        expected = case.reference(form, stored=stored_int8)
        np.testing.assert_allclose(case.run(isa, form, kv="int8"), expected, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_the_loss_is_that_of_eight_bits(isa: str, shape: tuple[int, int, int, int]) -> None:
    """Half a step of the values, and what keys that are off by half a step each turn the weights by."""
    case = Case.random(*shape)
    loss = np.abs(case.run(isa, kv="int8") - case.run(isa, kv="f16"))
    value_step = np.abs(case.value).max() / 127
    key_step = 2 * np.abs(case.key).max() / 127  # of a difference
    # scores are off by a sum of head_dim products, whose deviation is that of a uniform rounding error
    score_loss = 6 * key_step / np.sqrt(12)
    assert 0 < loss.max() < value_step / 2 + 1e-3 + 2 * score_loss * np.abs(case.value).max()
    assert loss.mean() < value_step / 2


@pytest.mark.parametrize("shape", [*SHAPES, (300, 6, 2, 48)])
@pytest.mark.parametrize("isa", FAST_ISAS)
def test_every_instruction_set_has_the_bits_of_scalar(isa: str, shape: tuple[int, int, int, int]) -> None:
    case = Case.random(*shape)
    for kv in ("f16", "int8"):
        np.testing.assert_array_equal(case.run(isa, kv=kv), case.run("scalar", kv=kv))


@pytest.mark.parametrize("form", FORMS + WHOLE)
@pytest.mark.parametrize("isa", FAST_ISAS)
def test_forms_have_the_bits_of_scalar(isa: str, form: Form) -> None:
    case = Case.random(70, 14, 2, 40)
    np.testing.assert_array_equal(case.run(isa, form, kv="int8"), case.run("scalar", form, kv="int8"))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_never_depends_on_rows_beside_it(isa: str, shape: tuple[int, int, int, int]) -> None:
    case = Case.random(*shape)
    whole = case.run(isa, kv="int8")
    for chunk in (1, 3, 16):
        np.testing.assert_array_equal(case.run(isa, chunk=chunk, kv="int8"), whole)
    np.testing.assert_array_equal(case.run(isa, first=len(whole) - 1, kv="int8"), whole[-1:])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("heads", [(1, 1), (8, 2)])
def test_every_number_of_rows_gives_the_same_bits(isa: str, heads: tuple[int, int]) -> None:
    case = Case.random(70, *heads, 16)
    whole = case.run(isa, kv="int8")
    for chunk in range(1, 27):
        np.testing.assert_array_equal(case.run(isa, chunk=chunk, kv="int8"), whole)


@pytest.mark.parametrize("form", (PLAIN, Form(window=40), Form(window=300), Form(softcap=2.0), Form(is_causal=False)))
@pytest.mark.parametrize("isa", ISAS)
def test_splitting_positions_keeps_every_bit(isa: str, form: Form) -> None:
    for length in (256, 257, 600):
        case = Case.random(length, 6, 2, 24)
        for first in (length - 40, length - 1):
            whole = case.run(isa, form, first=first, kv="int8")
            np.testing.assert_array_equal(case.run(isa, form, first=first, split=True, kv="int8"), whole)
            np.testing.assert_array_equal(case.run(isa, form, first=first, split=True, chunk=1, kv="int8"), whole)
        expected = case.reference(form, stored=stored_int8)[length - 1 :]
        np.testing.assert_allclose(whole, expected, atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
def test_attention_follows_the_block_table(isa: str) -> None:
    case = Case.random(100, 6, 2, 100)
    np.testing.assert_array_equal(
        case.run(isa, blocks=[5, 1, 7, 0], kv="int8"), case.run(isa, blocks=[0, 1, 2, 3], kv="int8")
    )


# --- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_values_are_stored_as_codes_times_a_factor(isa: str) -> None:
    """A row that sees one position gives what was stored of its value: zeros stay zero, large numbers are bounded."""
    rng = np.random.default_rng(2)
    value = rng.standard_normal((16, 256), dtype=np.float32) * np.float32(10.0) ** rng.integers(-45, 10, (16, 1))
    value = value.astype(np.float32)
    value[3], value[4] = 0.0, -0.0
    value[5, 7] = np.inf
    value[6, 7] = -3e38
    ones = np.ones_like(value)
    case = Case(ones, ones, value, 1, 1, 256)
    codes, factors = codes_of(value)
    for chunk in (1, 16):
        output = case.run(isa, Form(window=1), chunk=chunk, kv="int8")
        np.testing.assert_array_equal(output, codes * factors)


@pytest.mark.parametrize("isa", ISAS)
def test_large_channels_that_keys_share_cost_little(isa: str) -> None:
    """Some models add a large bias to keys in channels that turn slowly; see decision 0011."""
    case = Case.random(200, 4, 2, 64)
    plain_loss = np.abs(case.run(isa, pairs=False, kv="int8") - case.reference(pairs=False)).max()
    case.key.reshape(200, 2, 64)[..., [29, 30, 31, 62, 63]] += (150.0, -80.0, 40.0, 120.0, -60.0)
    loss = np.abs(case.run(isa, pairs=False, kv="int8") - case.reference(pairs=False)).max()
    assert loss < 3 * plain_loss
    codes, factors = codes_of(case.key.reshape(200, 2, 64))
    assert np.abs(codes * factors - case.key.reshape(200, 2, 64))[..., :29].mean() > 0.25  # of numbers around 1


@pytest.mark.parametrize("isa", ISAS)
def test_a_first_key_that_is_no_number_leaves_its_block_alone(isa: str) -> None:
    case = Case.random(100, 6, 2, 64)
    case.key[32, 5], case.key[64, 70] = np.nan, 3e38
    output = case.run(isa, Form(window=20), kv="int8")
    assert np.isnan(output[32:52, :192]).all()
    assert not np.isnan(np.delete(output, np.arange(32, 52), axis=0)).any() and not np.isnan(output[:, 192:]).any()
    case.key[32, :64] = 0.0  # what the origin is then, too
    expected = case.reference(Form(window=20), stored=stored_int8)
    np.testing.assert_allclose(output[52:84, :192], expected[52:84, :192], atol=2e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_stays_with_its_position(isa: str, odd: float) -> None:
    """Rows that do not see the position have their bits; those that do are NaN only where it was NaN."""
    for part in ("key", "value"):
        for form in (PLAIN, Form(window=20)):
            case = Case.random(100, 6, 2, 64)
            expected = case.run(isa, form, kv="int8")
            getattr(case, part)[61, :64] = odd  # of the first key/value head
            output = case.run(isa, form, kv="int8")
            end = 81 if form.window else 100
            np.testing.assert_array_equal(output[:61], expected[:61])
            np.testing.assert_array_equal(output[end:], expected[end:])
            np.testing.assert_array_equal(output[:, 192:], expected[:, 192:])
            if np.isinf(odd) and part == "key":
                continue  # the rotary embedding subtracts one infinity from another
            np.testing.assert_array_equal(np.isnan(output[61:end, :192]), np.isnan(odd))


@pytest.mark.parametrize("isa", ISAS)
def test_what_a_row_does_not_see_may_be_anything(isa: str) -> None:
    """Later positions and those before the window, in the same block too."""
    for form in (PLAIN, Form(window=20)):
        case = Case.random(100, 6, 2, 64)
        expected = case.run(isa, form, kv="int8")[:61]
        case.key[61:], case.value[61:] = np.nan, np.inf
        case.value[80:] = np.nan
        np.testing.assert_array_equal(case.run(isa, form, kv="int8")[:61], expected)


@pytest.mark.parametrize("isa", ISAS)
def test_half_precision_can_be_asked_for_by_name(isa: str) -> None:
    case = Case.random(40, 6, 2, 64)
    np.testing.assert_allclose(case.run(isa, kv="f16"), case.reference(), atol=5e-6)
    assert _native.kv_types(isa) == (["bf16", "f16", "int8"] if isa == "amx" else ["f16", "int8"])
    assert np.abs(round_f16(case.key) - case.key).max() > 0


@pytest.mark.parametrize("isa", ISAS)
def test_eight_bits_take_about_half_of_the_memory(isa: str) -> None:
    for head_dim in (64, 80, 100, 128):
        stored, half = (_native.kv_head_bytes(isa, kv, head_dim) for kv in ("int8", "f16"))
        assert stored % 64 == 0
        assert stored - half / 2 <= 2 * 32 * 4 + 2 * head_dim + 2 * 63 + 32 * 16
    with pytest.raises(ValueError, match="cannot be f32"):
        _native.kv_head_bytes(isa, "f32", 64)
