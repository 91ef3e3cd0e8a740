"""Linears of channel formats on every instruction set, against a plain reference in exact integers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from tests.parity.kernel_cases import ISAS, Floats, activate, misaligned, rms_norm

kernels = _native.kernels
FORMATS = ("INT8", "INT4", "NESTED8", "NESTED4")
EPS = 1e-5
MAX_MIXED = 12


def rotation(width: int) -> tuple[NDArray[np.float64], float]:
    """The symmetric matrix of native/rotation.h and the factor of its square."""
    block = width & -width
    hadamard = np.ones((1, 1))
    while len(hadamard) < block:
        hadamard = np.block([[hadamard, hadamard], [hadamard, -hadamard]])
    num_blocks = width // block
    mixing = np.eye(num_blocks)
    if block >= 16 and 1 < num_blocks <= MAX_MIXED:
        angles = 2 * np.pi * np.outer(np.arange(num_blocks), np.arange(num_blocks)) / num_blocks
        mixing = np.cos(angles) + np.sin(angles)
    matrix = np.kron(mixing, hadamard).astype(np.float64)
    return matrix, float((matrix @ matrix)[0, 0])


def read_panels(name: str, packed: NDArray[np.uint8], n: int, k: int) -> tuple[NDArray[np.int64], Floats]:
    """Integer weights [n, k] and scales [n] of a packed weight, by the layout of native/packed_weight.h."""
    num_tiles = -(-k // 32)
    num_panels = -(-n // 16)
    residual_bytes = num_panels * num_tiles * 256 if name.startswith("NESTED") else 0
    panels = packed[: packed.size - residual_bytes].reshape(num_panels, -1)
    scales = panels[:, :64].copy().view(np.float32)
    if name == "INT8":
        tiles = panels[:, 64:].reshape(len(panels), num_tiles, 8, 16, 4).astype(np.int64) - 128
    else:
        codes_at = panels.shape[1] - 256 * num_tiles
        pairs = panels[:, 64 : 64 + 8 * num_tiles].reshape(len(panels), num_tiles, 8)
        multipliers = np.concatenate([pairs & 15, pairs >> 4], -1).astype(np.int64) + 1
        tiles = nibbles(panels[:, codes_at:], num_tiles) * multipliers[:, :, None, :, None]
        if name == "NESTED8":
            tiles = tiles + nibbles(packed[packed.size - residual_bytes :], num_tiles) + 1
    rows = tiles.transpose(0, 3, 1, 2, 4).reshape(len(panels) * 16, num_tiles * 32)
    return rows[:n, :k], scales.reshape(-1)[:n]


def nibbles(packed: NDArray[np.uint8], num_tiles: int) -> NDArray[np.int64]:
    """Codes less 8, [panels, tiles, 8, 16, 4]."""
    codes = packed.reshape(-1, num_tiles, 4, 16, 4)
    return np.concatenate([codes & 15, codes >> 4], 2).astype(np.int64) - 8


@dataclass(frozen=True)
class ChannelWeight:
    """Float weights [n, k] and their packed form."""

    format: str
    values: Floats
    packed: NDArray[np.uint8]

    def native(self) -> _native.kernels.Weight:
        n, k = self.values.shape
        return kernels.weight(self.format, n, k, self.packed)

    def integers(self) -> tuple[NDArray[np.int64], Floats]:
        return read_panels(self.format, self.packed, *self.values.shape)


def make_weight(name: str, values: Floats, rows_a_call: int = 32) -> ChannelWeight:
    n, k = values.shape
    packed = np.full(_native.packed_size(name, n, k), 255, np.uint8)
    for begin in range(0, n, rows_a_call):
        _native.quantize_into(name, n, k, values[begin : begin + rows_a_call].copy(), begin, packed)
    return ChannelWeight(name, values, packed)


def random_weight(name: str, n: int, k: int, rng: np.random.Generator) -> ChannelWeight:
    return make_weight(name, rng.standard_normal((n, k), dtype=np.float32) / np.float32(16))


def run_linear(
    isa: str,
    x: Floats,
    weights: list[ChannelWeight],
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


def rounded(x: NDArray[np.floating]) -> NDArray[np.float64]:
    """Rotated rows, rounded to 8 bits with one scale each."""
    rotated = x.astype(np.float64) @ rotation(x.shape[1])[0]
    scale = np.abs(rotated).max(-1, keepdims=True) / 127
    return np.asarray(np.rint(rotated / scale) * scale)


def error_of_rounding(x: NDArray[np.floating], weight: ChannelWeight) -> NDArray[np.float64]:
    """What a few codes that fall on the other side of a tie may change: some steps times the largest weights."""
    rotated = np.abs(x.astype(np.float64) @ rotation(x.shape[1])[0]).max(-1, keepdims=True)
    integers, scales = weight.integers()
    return np.asarray(rotated / 127 * 3 * np.abs(integers).max() * np.abs(scales))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_linear_is_the_product_of_rounded_operands(isa: str, name: str) -> None:
    rng = np.random.default_rng(5)
    for k, n, num_rows in (
        (32, 1, 1),
        (1, 5, 2),
        (100, 33, 3),
        (576, 100, 17),
        (896, 64, 1),
        (256, 16, 7),
        (96, 70, 64),
    ):
        weight = random_weight(name, n, k, rng)
        x = misaligned(rng.standard_normal((num_rows, k), dtype=np.float32))
        integers, scales = weight.integers()
        expected = rounded(x) @ (integers.T * scales.astype(np.float64))
        actual = run_linear(isa, x, [weight])
        assert np.all(np.abs(actual - expected) <= error_of_rounding(x, weight))
        assert np.median(np.abs(actual - expected)) <= 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", [isa for isa in ISAS if isa != "scalar"])
def test_linear_has_the_bits_of_scalar_and_of_single_rows(isa: str, name: str) -> None:
    rng = np.random.default_rng(6)
    for num_rows in (1, 2, 5, 6, 7, 13, 40):
        weights = [random_weight(name, n, 224, rng) for n in (48, 20, 130)]
        x = rng.standard_normal((num_rows, 224), dtype=np.float32)
        actual = run_linear(isa, x, weights)
        np.testing.assert_array_equal(actual, run_linear("scalar", x, weights))
        singles = [run_linear(isa, x[row : row + 1], weights) for row in range(num_rows)]
        np.testing.assert_array_equal(actual, np.concatenate(singles))


@pytest.mark.parametrize("pair", [("INT8", "INT4"), ("NESTED8", "NESTED4")])
@pytest.mark.parametrize("isa", ISAS)
def test_norm_bias_activation_and_residual(isa: str, pair: tuple[str, str]) -> None:
    rng = np.random.default_rng(7)
    x, residual = (rng.standard_normal((num, width), dtype=np.float32) for num, width in ((9, 192), (9, 40)))
    norm, bias = rng.standard_normal(192, dtype=np.float32), rng.standard_normal(40, dtype=np.float32)
    gate, up = random_weight(pair[0], 40, 192, rng), random_weight(pair[1], 40, 192, rng)
    normed = rounded(rms_norm(x, norm, EPS))
    products = [normed @ (q.T * s.astype(np.float64)) for q, s in (gate.integers(), up.integers())]
    expected = activate(products[0] + bias, "silu") * products[1] + residual
    actual = run_linear(isa, x, [gate, up], biases=[bias, None], norm=norm, gated="silu", residual=residual)
    np.testing.assert_allclose(actual, expected, atol=0.02)
    assert np.median(np.abs(actual - expected)) < 1e-5


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_codes_at_their_limits_do_not_saturate(isa: str, name: str) -> None:
    for sign in (1, -1):
        weight = make_weight(name, np.full((16, 256), sign, np.float32))
        integers, scales = weight.integers()
        x = np.zeros((2, 256), np.float32)
        x[0], x[1, 0] = -1, 1  # rotated: one large code, and all of them at the limit
        expected = rounded(x) @ (integers.T * scales.astype(np.float64))
        np.testing.assert_allclose(run_linear(isa, x, [weight]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_rows_of_zeros_and_damaged_rows(isa: str) -> None:
    weight = random_weight("INT8", 20, 128, np.random.default_rng(12))
    x = np.random.default_rng(13).standard_normal((3, 128), dtype=np.float32)
    x[0] = 0
    for damaged in (np.nan, np.inf, -np.inf):
        x[2, 77] = damaged
        actual = run_linear(isa, x, [weight])
        assert np.all(actual[0] == 0)
        assert np.all(np.isfinite(actual[1]))
        assert np.all(np.isnan(actual[2]))


@pytest.mark.parametrize("name", FORMATS)
def test_quantized_weights_are_near_the_rotated_ones(name: str) -> None:
    rng = np.random.default_rng(8)
    step = {"INT8": 1 / 127, "INT4": 1 / 7, "NESTED8": 1 / 120, "NESTED4": 1 / 7}[name]
    for k in (8, 96, 576, 832):
        weight = random_weight(name, 40, k, rng)
        matrix, factor = rotation(k)
        rotated = weight.values.astype(np.float64) @ matrix / factor
        integers, scales = weight.integers()
        error = np.abs(integers * scales[:, None] - rotated)
        assert error.max() <= np.abs(rotated).max() * step
        rms = np.sqrt((error**2).mean() / (rotated**2).mean())
        assert rms < {"INT8": 0.01, "INT4": 0.11, "NESTED8": 0.01, "NESTED4": 0.11}[name]


def test_zeros_and_damaged_weights() -> None:
    values = np.ones((32, 64), np.float32)
    values[3] = 0
    values[5, 7], values[6, 8] = np.nan, np.inf
    for name in FORMATS:
        actual = run_linear("scalar", np.ones((1, 64), np.float32), [make_weight(name, values)])[0]
        assert actual[3] == 0
        assert np.isnan(actual[[5, 6]]).all()
        assert np.isfinite(np.delete(actual, [5, 6])).all()


def test_what_does_not_fit_is_refused() -> None:
    rows, packed = np.ones((16, 64), np.float32), np.zeros(_native.packed_size("INT8", 40, 64), np.uint8)
    with pytest.raises(ValueError, match="no channel format"):
        _native.quantize_into("Q4_0", 40, 64, rows, 0, packed)
    with pytest.raises(ValueError, match="no stored format"):
        _native.pack_into("INT8", 40, 64, np.zeros(1, np.uint8), packed)
    with pytest.raises(ValueError, match="packed_size"):
        _native.quantize_into("INT8", 40, 64, rows, 0, packed[1:])
    for count, begin in ((16, 8), (16, 32), (10, 0), (16, -16)):
        with pytest.raises(ValueError, match="whole panels"):
            _native.quantize_into("INT8", 40, 64, rows[:count].copy(), begin, packed)
    with pytest.raises(ValueError, match="at most 65536"):
        _native.packed_size("INT4", 1, 65537)
