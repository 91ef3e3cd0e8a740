"""Weights without their zeros on every instruction set, against the same weights with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from tests.parity.kernel_cases import ISAS, Floats, misaligned

kernels = _native.kernels
EPS = 1e-5
BITMAP, LIST = "F16_SPARSE", "F16_LIST"
FORMATS = (BITMAP, LIST)
Halves = NDArray[np.float16]


@dataclass(frozen=True)
class Weight:
    """Half precision weights [n, k], packed with and without their zeros."""

    values: Halves

    def dense(self) -> _native.kernels.Weight:
        n, k = self.values.shape
        packed = np.zeros(_native.packed_size("F16", n, k), np.uint8)
        _native.pack_into("F16", n, k, self.values.reshape(-1).view(np.uint8), packed)
        return kernels.weight("F16", n, k, packed)

    def packed(self, name: str, rows_a_call: int = 32) -> NDArray[np.uint8]:
        n, k = self.values.shape
        bits = self.values.view(np.uint16)
        starts = range(0, n, rows_a_call)
        size = sum(_native.sparse_size(name, n, k, bits[at : at + rows_a_call], at) for at in starts)
        packed = np.full(size, 255, np.uint8)
        ends = [_native.pack_sparse_into(name, n, k, bits[at : at + rows_a_call], at, packed) for at in starts]
        assert ends[-1] == size
        return packed

    def sparse(self, name: str = BITMAP) -> _native.kernels.Weight:
        num_outputs, num_inputs = self.values.shape
        return kernels.weight(name, num_outputs, num_inputs, self.packed(name))


def random_weight(n: int, k: int, density: float, rng: np.random.Generator) -> Weight:
    values = rng.standard_normal((n, k)) / 16
    return Weight((values * (rng.random((n, k)) < density)).astype(np.float16))


def run(isa: str, x: Floats, weights: list[_native.kernels.Weight], width: int, **other: object) -> Floats:
    output = misaligned(np.full((len(x), width), np.nan, np.float32), shift=3)
    options = {"biases": [None] * len(weights), "norm": None, "gated": "", "residual": None} | other
    biases, norm, gated, residual = (options[name] for name in ("biases", "norm", "gated", "residual"))
    kernels.linear(isa, x, weights, biases, norm, EPS, gated, residual, output)  # type: ignore[arg-type]
    return output


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_sparse_weights_give_what_dense_ones_give(isa: str, name: str, density: float) -> None:
    rng = np.random.default_rng(5)
    for n, k, num_rows in ((1, 1, 1), (33, 100, 1), (16, 32, 2), (100, 576, 1), (70, 96, 17), (20, 1000, 40)):
        weight = random_weight(n, k, density, rng)
        x = misaligned(rng.standard_normal((num_rows, k), dtype=np.float32))
        actual, dense = run(isa, x, [weight.sparse(name)], n), run(isa, x, [weight.dense()], n)
        if name == BITMAP or isa == "amx":
            np.testing.assert_array_equal(actual, dense)
        expected = x.astype(np.float64) @ weight.values.astype(np.float64).T
        tolerance = 0.02 if isa == "amx" else 1e-6
        np.testing.assert_allclose(actual, expected, atol=tolerance * np.sqrt(k), rtol=tolerance)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_bits_are_those_of_scalar_and_of_single_rows(isa: str, name: str) -> None:
    rng = np.random.default_rng(6)
    weights = [random_weight(n, 224, density, rng).sparse(name) for n, density in ((48, 0.2), (20, 0.5), (130, 0.05))]
    for num_rows in (1, 2, 5, 13, 40, 300):
        x = rng.standard_normal((num_rows, 224), dtype=np.float32)
        actual = run(isa, x, weights, 198)
        singles = [run(isa, x[row : row + 1], weights, 198) for row in range(num_rows)]
        np.testing.assert_array_equal(actual, np.concatenate(singles))
        if isa != "amx":
            np.testing.assert_array_equal(actual, run("scalar", x, weights, 198))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", [1, 3, 40])
def test_one_of_gate_and_up_may_be_dense(isa: str, num_rows: int) -> None:
    rng = np.random.default_rng(7)
    x, residual = (rng.standard_normal((num_rows, width), dtype=np.float32) for width in (192, 40))
    norm, bias = rng.standard_normal(192, dtype=np.float32), rng.standard_normal(40, dtype=np.float32)
    gate, up = random_weight(40, 192, 0.3, rng), random_weight(40, 192, 1.0, rng)
    other = {"biases": [bias, None], "norm": norm, "gated": "silu", "residual": residual}
    dense = run(isa, x, [gate.dense(), up.dense()], 40, **other)
    for pair in ([gate.sparse(), up.dense()], [gate.dense(), up.sparse()], [gate.sparse(), up.sparse()]):
        np.testing.assert_array_equal(run(isa, x, pair, 40, **other), dense)
    for pair in ([gate.sparse(LIST), up.dense()], [gate.sparse(LIST), up.sparse()], [gate.dense(), up.sparse(LIST)]):
        np.testing.assert_allclose(run(isa, x, pair, 40, **other), dense, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_special_weights_and_activations(isa: str) -> None:
    rng = np.random.default_rng(8)
    weight = random_weight(32, 64, 0.3, rng)
    weight.values[3, 5], weight.values[4, 6], weight.values[5, 7] = np.inf, np.nan, 6e-8
    weight.values[weight.values == 0] *= np.float16(-1)  # zeros of either sign are left out
    plain = Weight(np.where(weight.values == 0, np.float16(0), weight.values))
    for name in FORMATS:
        assert weight.packed(name).tobytes() == plain.packed(name).tobytes()
    for damaged in (1.0, np.nan, np.inf):
        x = rng.standard_normal((2, 64), dtype=np.float32)
        x[1, 40] = damaged
        dense = run(isa, x, [plain.dense()], 32)
        np.testing.assert_array_equal(run(isa, x, [weight.sparse()], 32), dense)
        listed = run(isa, x, [weight.sparse(LIST)], 32)
        np.testing.assert_allclose(listed[0], dense[0], rtol=1e-4, atol=1e-5)
        if isa != "amx":  # an input whose weight is zero is not looked at
            is_sound = np.isfinite(plain.values).all(1) & (np.isfinite(damaged) | (plain.values[:, 40] == 0))
            np.testing.assert_array_equal(np.isfinite(listed[1]), is_sound)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("isa", ISAS)
def test_rows_are_unpacked(isa: str, name: str) -> None:
    for k in (64, 100):
        weight = random_weight(40, k, 0.4, np.random.default_rng(9))
        rows = np.empty((40, k), np.float32)
        kernels.unpack(isa, weight.sparse(name), rows)
        np.testing.assert_array_equal(rows, weight.values.astype(np.float32))


def test_bytes_of_a_bitmap_follow_from_the_layout_and_not_from_the_chunks() -> None:
    weight = random_weight(100, 576, 0.5, np.random.default_rng(10))
    packed = weight.packed(BITMAP)
    assert packed.tobytes() == weight.packed(BITMAP, 16).tobytes() == weight.packed(BITMAP, 112).tobytes()
    num_panels, num_tiles = 7, 18
    offsets = packed[: 8 * (num_panels + 1)].view(np.uint64).astype(np.int64)
    assert offsets[0] == 64 and offsets[-1] == packed.size
    for panel in range(num_panels):
        rows = weight.values[16 * panel : 16 * panel + 16]
        data = packed[offsets[panel] : offsets[panel + 1]]
        counts = np.zeros(16, np.int64)
        counts[: len(rows)] = np.count_nonzero(rows, axis=1)
        assert data.size == -(-(64 + 64 * num_tiles + 2 * counts.sum() + 64) // 64) * 64
        assert data[:64].view(np.uint32).tolist() == [0, *np.cumsum(counts)[:-1]]
        mask = np.unpackbits(data[64 : 64 + 64 * num_tiles], bitorder="little").reshape(16, 576)
        np.testing.assert_array_equal(mask[: len(rows)], rows != 0)
        values = data[64 + 64 * num_tiles :].view(np.float16)[: counts.sum()]
        np.testing.assert_array_equal(values, rows[rows != 0])


def test_bytes_of_a_list_follow_from_the_layout_and_not_from_the_chunks() -> None:
    weight = random_weight(40, 576, 0.1, np.random.default_rng(10))
    packed = weight.packed(LIST)
    assert packed.tobytes() == weight.packed(LIST, 16).tobytes() == weight.packed(LIST, 48).tobytes()
    offsets = packed[:32].view(np.uint64).astype(np.int64)
    assert offsets[0] == 64 and offsets[-1] == packed.size
    for panel in range(3):
        rows = weight.values[16 * panel : 16 * panel + 16]
        data = packed[offsets[panel] : offsets[panel + 1]]
        starts = data[:128].view(np.uint32)
        assert data.size == 128 + 64 * starts[16]
        for n, row in enumerate(rows):
            groups = data[128:].reshape(-1, 64)[starts[n] : starts[n + 1]]
            (inputs,) = np.nonzero(row)
            assert len(groups) == -(-len(inputs) // 16)
            found, weights = groups[:, :32].copy().view(np.uint16), groups[:, 32:].copy().view(np.float16)
            np.testing.assert_array_equal(found.reshape(-1)[: len(inputs)], inputs)
            np.testing.assert_array_equal(weights.reshape(-1)[: len(inputs)], row[inputs])
            assert not weights.reshape(-1)[len(inputs) :].any()


def check_refused(name: str, n: int, k: int, packed: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="do not fit each other"):
        kernels.weight(name, n, k, packed)


def test_damaged_weights_are_refused() -> None:
    weight = random_weight(40, 100, 0.5, np.random.default_rng(11))
    for name in FORMATS:
        packed = weight.packed(name)
        first = int(packed[:8].view(np.uint64)[0])
        panel = {
            BITMAP: (*range(64), *range(64, 64 + 15 * 4 * 4, 7)),  # starts, and masks that tell starts
            LIST: (*range(4), *range(64, 68), *range(129, 160, 2)),  # first start, end, high bytes of inputs
        }[name]
        for at in (*range(32), *(first + byte for byte in panel)):
            for change in (1, 128):
                damaged = packed.copy()
                damaged[at] ^= change
                check_refused(name, 40, 100, damaged)
        for size in (0, 7, 63, first, packed.size - 64, packed.size - 1):
            check_refused(name, 40, 100, packed[:size].copy())
        check_refused(name, 24, 100, packed)


def test_an_output_with_more_weights_than_inputs_is_refused() -> None:
    packed = random_weight(40, 100, 0.5, np.random.default_rng(11)).packed(LIST)
    first = int(packed[:8].view(np.uint64)[0])
    starts = packed[first : first + 4 * 17].view(np.uint32)
    starts[1:16] = starts[16]  # all groups of the panel belong to its first output
    check_refused(LIST, 40, 100, packed)


def test_what_does_not_fit_is_refused() -> None:
    bits = random_weight(40, 100, 0.5, np.random.default_rng(12)).values.view(np.uint16)
    for name in FORMATS:
        packed = np.zeros(_native.sparse_size(name, 40, 100, bits, 0), np.uint8)
        with pytest.raises(ValueError, match="depends on its zeros"):
            _native.packed_size(name, 40, 100)
        with pytest.raises(ValueError, match="pack_sparse_into"):
            _native.pack_into(name, 40, 100, np.zeros(1, np.uint8), packed)
        with pytest.raises(ValueError, match="no channel format"):
            _native.quantize_into(name, 40, 100, np.zeros((40, 100), np.float32), 0, packed)
        for count, begin in ((16, 8), (16, 32), (10, 0), (16, -16)):
            with pytest.raises(ValueError, match="whole panels"):
                _native.sparse_size(name, 40, 100, bits[:count], begin)
        for small in (packed[:10], packed[:-64]):
            with pytest.raises(ValueError, match="smaller than sparse_size"):
                _native.pack_sparse_into(name, 40, 100, bits, 0, small)
        with pytest.raises(ValueError, match="outputs before"):
            _native.pack_sparse_into(name, 40, 100, bits[16:32], 16, packed)
        with pytest.raises(ValueError, match="at most 2\\^24 inputs, one of F16_LIST 65536"):
            kernels.weight(name, 1, 2**24 + 1, packed)
    with pytest.raises(ValueError, match="no format of sparse weights"):
        _native.sparse_size("F16", 40, 100, bits, 0)
