"""Every native kernel on every instruction set this processor has, against plain references, odd shapes included."""

from __future__ import annotations

import numpy as np
import pytest

from subsecond import _native
from subsecond.backends.native.weight_formats import PACKED_FORMATS, SPARSE_FORMATS
from tests.parity.kernel_cases import (
    ACTIVATIONS,
    BLOCK_INPUTS,
    FORMATS,
    I16_ISAS,
    ISAS,
    Floats,
    StoredWeight,
    activate,
    misaligned,
    random_weight,
    rms_norm,
    rotary_table,
    rotate,
    round_bf16,
    round_bf16_away,
    round_i16,
)

kernels = _native.kernels
EPS = 1e-5


def run_linear(
    isa: str,
    x: Floats,
    weights: list[StoredWeight],
    *,
    biases: list[Floats | None] | None = None,
    norm: Floats | None = None,
    gated: str = "",
    residual: Floats | None = None,
) -> Floats:
    width = weights[0].values.shape[0] if gated else sum(w.values.shape[0] for w in weights)
    output = misaligned(np.full((len(x), width), np.nan, np.float32), shift=3)
    handles = [w.native() for w in weights]
    kernels.linear(isa, x, handles, biases or [None] * len(weights), norm, EPS, gated, residual, output)
    return output


def widths(name: str) -> list[int]:
    block = BLOCK_INPUTS[name]
    return [1, 31, 33, 100, 576] if block == 1 else [block, 3 * block]


def test_the_formats_of_the_kernels_are_those_of_the_loader() -> None:
    names = [name for name, *_ in _native.self_test("scalar")]
    tested = {name.removeprefix("linear_") for name in names if name.startswith("linear_")}
    assert tested == {*PACKED_FORMATS, *SPARSE_FORMATS}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_unpacked_rows_are_the_stored_values(isa: str, name: str) -> None:
    for k in widths(name):
        weight = random_weight(name, 37, k, np.random.default_rng(k))
        rows = np.empty((37, k), np.float32)
        kernels.unpack(isa, weight.native(), rows)
        np.testing.assert_array_equal(rows, weight.values)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", I16_ISAS)
def test_i16_linear_is_the_product_with_rounded_activations(isa: str, name: str) -> None:
    rng = np.random.default_rng(5)
    for k in widths(name):
        for num_rows, n in ((1, 1), (2, 16), (5, 33), (70, 100)):
            weight = random_weight(name, n, k, rng)
            x = misaligned(rng.standard_normal((num_rows, k), dtype=np.float32))
            rounded = x.astype(np.float64) if BLOCK_INPUTS[name] == 1 else round_i16(x)
            expected = rounded @ weight.values.T.astype(np.float64)
            # codes are summed before their bias or minimum is taken off, which may be several times the weight
            terms = np.abs(weight.values.T) + (0 if BLOCK_INPUTS[name] == 1 else 4 * np.abs(weight.values).max())
            bound = np.abs(rounded) @ terms * 2**-24 * (k / 16 + 8)
            assert np.all(np.abs(run_linear(isa, x, [weight]) - expected) <= bound + 1e-30)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", [isa for isa in I16_ISAS if isa != "scalar"])
def test_i16_linear_has_the_bits_of_scalar(isa: str, name: str) -> None:
    rng = np.random.default_rng(6)
    for num_rows in (1, 3, 4, 17):
        weights = [random_weight(name, n, widths(name)[-1], rng) for n in (48, 20)]
        x = rng.standard_normal((num_rows, widths(name)[-1]), dtype=np.float32)
        np.testing.assert_array_equal(run_linear(isa, x, weights), run_linear("scalar", x, weights))


@pytest.mark.parametrize("isa", I16_ISAS)
def test_blocks_of_zeros_tiny_and_damaged_values(isa: str) -> None:
    weight = random_weight("Q4_1", 20, 128, np.random.default_rng(12))
    x = np.random.default_rng(13).standard_normal((3, 128), dtype=np.float32)
    x[0] = 0
    x[1, 32:] = 1e-38
    x[1, :32] = 1e34
    expected = round_i16(x[1:]) @ weight.values.T.astype(np.float64)
    actual = run_linear(isa, x, [weight])
    assert np.all(actual[0] == 0)
    np.testing.assert_allclose(actual[1] / 1e34, expected[0] / 1e34, atol=1e-5)
    np.testing.assert_allclose(actual[2], expected[1], atol=1e-4)
    for damaged in (np.nan, np.inf, -np.inf):
        x[2, 77] = damaged
        assert np.all(np.isnan(run_linear(isa, x, [weight])[2]))


@pytest.mark.amx
@pytest.mark.skipif("amx" not in ISAS, reason="this processor has no AMX")
@pytest.mark.parametrize("name", FORMATS)
def test_bf16_linear_is_the_product_of_rounded_operands(name: str) -> None:
    rng = np.random.default_rng(7)
    for k in widths(name):
        for num_rows, n in ((1, 1), (2, 16), (15, 17), (16, 32), (17, 33), (33, 48), (70, 100)):
            weight = random_weight(name, n, k, rng)
            x = misaligned(rng.standard_normal((num_rows, k), dtype=np.float32))
            # values that are looked up in tables are rounded in the cheaper way
            rounded_x = round_bf16(x)
            is_looked_up = name.startswith(("Q2", "Q3", "Q4", "Q5", "IQ4"))
            rounded_w = (round_bf16_away if is_looked_up else round_bf16)(weight.values)
            expected = rounded_x.astype(np.float64) @ rounded_w.T.astype(np.float64)
            bound = np.abs(rounded_x).astype(np.float64) @ np.abs(rounded_w.T) * 2**-24 * (k / 2 + 8)
            assert np.all(np.abs(run_linear("amx", x, [weight]) - expected) <= bound + 1e-30)


@pytest.mark.parametrize("isa", ISAS)
def test_linear_epilogues(isa: str) -> None:
    rng = np.random.default_rng(8)
    k, sizes = 576, (48, 16, 23)
    for num_rows in (1, 7, 16, 40):
        weights = [random_weight(name, n, k, rng) for name, n in zip(("Q4_1", "Q8_0", "F16"), sizes, strict=True)]
        x = rng.standard_normal((num_rows, k), dtype=np.float32)
        biases = [rng.standard_normal(n, dtype=np.float32) if n != 16 else None for n in sizes]
        norm = rng.uniform(0.5, 1.5, k).astype(np.float32)
        residual = misaligned(rng.standard_normal((num_rows, sum(sizes)), dtype=np.float32))
        products = rms_norm(x, norm, EPS) @ np.concatenate([w.values for w in weights]).T.astype(np.float64)
        bias = np.concatenate([np.zeros(n) if b is None else b for b, n in zip(biases, sizes, strict=True)])
        actual = run_linear(isa, x, weights, biases=biases, norm=norm, residual=residual)
        scale = np.abs(products).max()
        np.testing.assert_allclose(actual, products + bias + residual, atol=scale * (0.01 if isa == "amx" else 1e-4))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("formats", [("Q4_1", "Q4_1"), ("Q8_0", "Q5_0")])
@pytest.mark.parametrize("isa", ISAS)
def test_gated_linear(isa: str, formats: tuple[str, str], activation: str) -> None:
    rng = np.random.default_rng(9)
    for num_rows, n in ((1, 40), (5, 48), (33, 16)):
        gate, up = (random_weight(name, n, 96, rng) for name in formats)
        x = rng.standard_normal((num_rows, 96), dtype=np.float32)
        products = [x.astype(np.float64) @ w.values.T.astype(np.float64) for w in (gate, up)]
        expected = activate(products[0], activation) * products[1]
        atol = max(1.0, float(np.abs(expected).max())) * (0.02 if isa == "amx" else 1e-4)
        np.testing.assert_allclose(run_linear(isa, x, [gate, up], gated=activation), expected, atol=atol)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_linear_row_never_depends_on_other_rows(isa: str, name: str) -> None:
    rng = np.random.default_rng(10)
    k = widths(name)[-1]
    weight, up = random_weight(name, 40, k, rng), random_weight("Q8_0", 40, k, rng) if k % 32 == 0 else None
    x = rng.standard_normal((70, k), dtype=np.float32)
    alone = np.concatenate([run_linear(isa, x[r : r + 1], [weight]) for r in range(70)])
    for num_rows in (2, 3, 15, 16, 17, 32, 33, 64, 70):
        np.testing.assert_array_equal(run_linear(isa, x[:num_rows], [weight]), alone[:num_rows])
    if up:
        gated = np.concatenate([run_linear(isa, x[r : r + 1], [weight, up], gated="silu") for r in range(70)])
        np.testing.assert_array_equal(run_linear(isa, x, [weight, up], gated="silu"), gated)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 15, 16, 17, 100, 576])
def test_element_wise(isa: str, width: int) -> None:
    rng = np.random.default_rng(width)
    left, right = (misaligned(rng.standard_normal((9, width), dtype=np.float32) * 8) for _ in range(2))
    weight = rng.standard_normal(width, dtype=np.float32)
    output = misaligned(np.full((9, width), np.nan, np.float32))
    kernels.add(isa, left, right, output)
    np.testing.assert_array_equal(output, left + right)
    kernels.scale(isa, left, 1.7, output)
    np.testing.assert_array_equal(output, left * np.float32(1.7))
    for activation in ACTIVATIONS:
        expected = activate(left.astype(np.float64), activation)
        kernels.activate(isa, left, activation, output)
        np.testing.assert_allclose(output, expected, rtol=2e-6, atol=3e-7)
        kernels.gated_activation(isa, left, right, activation, output)
        np.testing.assert_allclose(output, expected * right, rtol=2e-6, atol=1e-6)
    kernels.normalize(isa, left, weight, None, EPS, False, output)
    np.testing.assert_allclose(output, rms_norm(left, weight, EPS), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("width", [1, 15, 16, 40, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_norms_of_groups(isa: str, width: int) -> None:
    """Three groups a row, each normalized alone; far from zero the mean must not eat the variance's digits."""
    rng = np.random.default_rng(width)
    x = misaligned(rng.standard_normal((5, 3 * width), dtype=np.float32) + 100)
    weight, bias = (rng.standard_normal(width, dtype=np.float32) for _ in range(2))
    groups = x.reshape(5, 3, width).astype(np.float64)
    output = misaligned(np.full((5, 3 * width), np.nan, np.float32))
    kernels.normalize(isa, x, weight, None, EPS, False, output)
    np.testing.assert_allclose(output.reshape(groups.shape), rms_norm(groups, weight, EPS), rtol=2e-6)
    kernels.normalize(isa, x, weight, bias, EPS, True, output)
    centred = groups - groups.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPS) * weight + bias
    # the mean of numbers about 100 is known to some 1e-5
    np.testing.assert_allclose(output.reshape(groups.shape), expected, atol=1e-4 if width > 1 else 0.02)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("isa", ISAS)
def test_activations_of_extreme_values(isa: str, activation: str) -> None:
    x = np.array([[0.0, -0.0, 1e4, -1e4, 88.0, -88.0, 3e38, -3e38]], np.float32)
    output = np.empty_like(x)
    kernels.activate(isa, x, activation, output)
    np.testing.assert_allclose(output, [[0, 0, 1e4, 0, 88, 0, 3e38, 0]], atol=2e-33 * 3e38)
    assert np.all(np.isfinite(output))
    kernels.activate(isa, np.full_like(x, np.nan), activation, output)
    assert np.isnan(output).all()
    kernels.activate(isa, np.full_like(x, np.inf), activation, output)
    assert np.isposinf(output).all()


@pytest.mark.parametrize("name", [name for name in FORMATS if BLOCK_INPUTS[name] > 1])
@pytest.mark.parametrize("isa", ISAS)
def test_a_damaged_scale_shows(isa: str, name: str) -> None:
    """Every NaN of fp16, also those whose rounding would carry into the sign."""
    rng = np.random.default_rng(4)
    num_inputs = BLOCK_INPUTS[name]
    x = rng.standard_normal((3, num_inputs), dtype=np.float32)
    for bits in (0x7E00, 0x7FFF, 0xFFFF):
        weight = random_weight(name, 16, num_inputs, rng, damaged=bits)
        output = run_linear(isa, x, [weight])
        assert np.isnan(output[:, 3]).all() and np.isfinite(np.delete(output, 3, axis=1)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_keeps_the_digits_of_its_tail(isa: str) -> None:
    x = np.linspace(-9, 9, 20011, dtype=np.float32)[None]
    output = np.empty_like(x)
    kernels.activate(isa, x, "gelu", output)
    np.testing.assert_allclose(output, activate(x.astype(np.float64), "gelu"), rtol=4e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_softcap(isa: str) -> None:
    """Small values keep their digits, large ones come up to the cap, NaN stays."""
    x = np.concatenate([np.geomspace(1e-30, 1e30, 601), -np.geomspace(1e-30, 1e30, 601), [0.0]])[None].astype(
        np.float32
    )
    output = np.empty_like(x)
    for cap in (0.5, 30.0, 50.0):
        kernels.softcap(isa, x, cap, output)
        np.testing.assert_allclose(output, cap * np.tanh(x.astype(np.float64) / cap), rtol=1e-6)
        assert np.abs(output).max() <= cap
    kernels.softcap(isa, np.full_like(x, np.nan), 30.0, output)
    assert np.isnan(output).all()


@pytest.mark.parametrize("num_experts", [1, 2, 5, 16, 60, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_choice_of_experts(isa: str, num_experts: int) -> None:
    rng = np.random.default_rng(num_experts)
    logits = misaligned(rng.integers(-6, 6, (40, num_experts)).astype(np.float32))  # many ties
    probabilities = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    for num_chosen in {1, min(4, num_experts), num_experts}:
        expected = np.sort(np.argsort(-logits, axis=-1, kind="stable")[:, :num_chosen], -1)
        weights = np.take_along_axis(probabilities, expected, -1)
        for is_normalized in (False, True):
            experts = np.full((40, num_chosen), -1, np.int32)
            actual = np.full((40, num_chosen), np.nan, np.float32)
            kernels.choose_experts(isa, logits, is_normalized, experts, actual)
            np.testing.assert_array_equal(experts, expected)
            divided = weights / weights.sum(-1, keepdims=True) if is_normalized else weights
            np.testing.assert_allclose(actual, divided, rtol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_experts_chosen_by_nan_are_still_experts(isa: str) -> None:
    experts, weights = np.full((1, 2), -1, np.int32), np.zeros((1, 2), np.float32)
    kernels.choose_experts(isa, np.full((1, 7), np.nan, np.float32), True, experts, weights)
    assert experts.tolist() == [[0, 1]]
    assert np.isnan(weights).all()


@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("isa", ISAS)
def test_rope(isa: str, is_interleaved: bool) -> None:
    rng = np.random.default_rng(11)
    for head_dim, dims in ((64, 64), (40, 40), (80, 32), (6, 2)):
        x = rng.standard_normal((5, 3 * head_dim), dtype=np.float32)
        table, positions = rotary_table(50, dims), np.array([0, 1, 7, 30, 49], np.int32)
        output = np.empty_like(x)
        kernels.rope(isa, x, table.reshape(-1), dims, is_interleaved, head_dim, positions, output)
        expected = rotate(x.reshape(5, 3, head_dim), table, positions, is_interleaved=is_interleaved)
        np.testing.assert_allclose(output.reshape(expected.shape), expected, atol=1e-6)
