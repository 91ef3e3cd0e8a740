"""The native sampler against the plain one, and against the distribution it should draw from."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from subsecond import _native
from subsecond.backends.batch import Float32, SampleBatch, UInt32
from subsecond.backends.sampling import sample
from tests.parity import sampling_reference as reference

VOCAB_SIZE = 49152


def make_batch(num_rows: int, **changes: Any) -> SampleBatch:
    """A batch of plain draws; `changes` gives one value for all rows, or an array."""
    values: dict[str, Any] = {
        "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "seed": 7, "sample_index": 0,
        "position": np.arange(num_rows), "bias_offsets": np.zeros(num_rows + 1), "bias_ids": [], "bias_values": [],
        "history_offsets": np.zeros(num_rows + 1), "history_ids": [], "history_counts": [], "num_logprobs": 0,
    }  # fmt: skip
    values.update(changes)
    floats = {
        "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "bias_values",
    }  # fmt: skip
    arrays: dict[str, Any] = {}
    for name, value in values.items():
        if name == "num_logprobs":
            continue
        kind = np.float32 if name in floats else np.uint64 if name == "seed" else np.int32
        array = np.asarray(value, kind)
        arrays[name] = np.full(num_rows, array) if array.ndim == 0 else array
    return SampleBatch(**arrays, num_logprobs=values["num_logprobs"])


def random_batch(rng: np.random.Generator, num_rows: int, vocab_size: int) -> SampleBatch:
    """Rows with every setting on or off at random."""

    def maybe(values: np.ndarray, off: float) -> np.ndarray:
        return np.where(rng.random(num_rows) < 0.5, off, values)

    def offsets(lengths: np.ndarray) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(lengths)])

    num_biases = rng.integers(0, 4, num_rows)
    num_history = rng.integers(0, min(vocab_size, 20) + 1, num_rows)
    history = [rng.permutation(vocab_size)[:n] for n in num_history]
    return make_batch(
        num_rows,
        temperature=maybe(rng.choice([1e-9, 0.05, 0.7, 1.0, 1.7, 50.0], num_rows), 0.0),
        top_k=maybe(rng.choice([1, 2, 40, 500, 10**9], num_rows), 0),
        top_p=maybe(rng.choice([0.0, 1e-6, 0.3, 0.9, 0.95, 0.999999], num_rows), 1.0),
        min_p=maybe(rng.choice([1e-9, 0.05, 0.5, 1.0], num_rows), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2, num_rows), 1.0),
        presence_penalty=maybe(rng.uniform(-2, 2, num_rows), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2, num_rows), 0.0),
        seed=rng.integers(0, 2**64, num_rows, dtype=np.uint64),
        sample_index=rng.integers(0, 8, num_rows),
        position=rng.integers(0, 2**31, num_rows),
        bias_offsets=offsets(num_biases),
        bias_ids=rng.integers(0, vocab_size, num_biases.sum()),
        bias_values=rng.choice([-np.inf, -100.0, -1.5, 3.0, 100.0], num_biases.sum()),
        history_offsets=offsets(num_history),
        history_ids=np.concatenate(history),
        history_counts=rng.integers(0, 3, num_history.sum()),
        num_logprobs=int(rng.choice([0, 1, min(vocab_size, 7)])),
    )


def random_logits(rng: np.random.Generator, num_rows: int, vocab_size: int) -> Float32:
    """Rows that are smooth, full of ties, flat, wide beyond float32's exponent range, or with missing values."""
    rows = rng.normal(0, rng.choice([0.01, 1.0, 4.0, 1e4], (num_rows, 1)), (num_rows, vocab_size))
    is_tied = rng.random(num_rows) < 0.4
    rows[is_tied] = np.round(rows[is_tied])
    missing = rng.random((num_rows, vocab_size)) < rng.choice([0.0, 0.3], (num_rows, 1))
    rows[missing] = rng.choice([-np.inf, np.nan, -3e38], missing.sum())
    rows[:, rng.integers(0, vocab_size)] = 1.25
    return rows.astype(np.float32)


def assert_same(logits: Float32, batch: SampleBatch) -> None:
    result, expected = sample(logits, batch), reference.sample(logits, batch)
    np.testing.assert_array_equal(result.token_ids, expected.token_ids)
    np.testing.assert_allclose(result.logprobs, expected.logprobs, rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(result.top_ids, expected.top_ids)
    np.testing.assert_allclose(result.top_logprobs, expected.top_logprobs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("vocab_size", [1, 2, 3, 15, 17, 255, 257, 1000, 4099])
@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
def test_random_cases_match_the_plain_sampler(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    for _ in range(12):
        logits = random_logits(rng, 16, vocab_size)
        batch = random_batch(rng, 16, vocab_size)
        is_usable = [np.isfinite(reference.adjusted_logits(logits[r], batch, r).max()) for r in range(16)]
        if not all(is_usable):
            assert sample(logits, batch).failed_rows == tuple(np.flatnonzero(~np.array(is_usable)))
            continue
        assert_same(logits, batch)


def test_a_real_vocabulary_matches_the_plain_sampler() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 3, (24, VOCAB_SIZE)).astype(np.float32)
    assert_same(logits, random_batch(rng, 24, VOCAB_SIZE))
    assert_same(logits * np.float32(0.01), make_batch(24, num_logprobs=20, seed=3))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_neither_instruction_set_nor_threads_change_a_bit(num_threads: int) -> None:
    rng = np.random.default_rng(3)
    logits = np.concatenate([random_logits(rng, 15, VOCAB_SIZE), rng.normal(0, 3, (9, VOCAB_SIZE)).astype(np.float32)])
    batch = random_batch(rng, 24, VOCAB_SIZE)
    logits[0] = 0
    expected = sample(logits, batch, isa="scalar")
    for isa in _native.available_isas():
        result = sample(logits, batch, isa=isa, num_threads=num_threads)
        for name in ("token_ids", "logprobs", "top_ids", "top_logprobs"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name), f"{isa} {name}")


def test_rows_without_a_distribution_are_named_and_the_others_drawn() -> None:
    logits = np.zeros((40, VOCAB_SIZE), np.float32)
    logits[[7, 30]] = np.nan
    result = sample(logits, make_batch(40), num_threads=2)
    assert result.failed_rows == (7, 30)
    assert np.isneginf(result.logprobs).nonzero()[0].tolist() == [7, 30]
    logits[[7, 30]] = 0
    others = np.delete(np.arange(40), [7, 30])
    np.testing.assert_array_equal(result.token_ids[others], sample(logits, make_batch(40)).token_ids[others])


def test_the_input_is_left_unchanged() -> None:
    logits = np.zeros((1, 8), np.float32)
    logits.setflags(write=False)
    batch = make_batch(1, bias_offsets=[0, 1], bias_ids=[3], bias_values=[5.0], temperature=0.0)
    assert sample(logits, batch).token_ids[0] == 3
    assert not logits.any()


def test_greedy_takes_the_lowest_id_on_a_tie() -> None:
    logits = np.zeros((3, 600), np.float32)
    logits[1, [599, 300, 301]] = 2.0
    logits[2] = np.nan
    logits[2, 512] = -1e30
    assert sample(logits, make_batch(3, temperature=0.0)).token_ids.tolist() == [0, 300, 512]


@pytest.mark.parametrize(
    ("top_p", "num_kept"),
    [(0.0, 1), (0.25, 1), (0.2500001, 2), (0.5, 2), (0.75, 3), (0.9, 4), (1.0, 4)],
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, num_kept: int) -> None:
    logits = np.full((400, 64), -np.inf, np.float32)
    logits[:, [5, 20, 40, 63]] = 1.5
    drawn = set(sample(logits, make_batch(400, top_p=top_p)).token_ids.tolist())
    assert drawn == set([5, 20, 40, 63][:num_kept])


def test_min_p_keeps_what_is_near_enough_to_the_most_likely() -> None:
    logits = np.log(np.array([0.5, 0.26, 0.2, 0.04])).astype(np.float32)
    batch = make_batch(600, min_p=0.5)
    assert set(sample(np.tile(logits, (600, 1)), batch).token_ids.tolist()) == {0, 1}


@pytest.mark.parametrize("row_value", [np.nan, -np.inf, np.inf])
def test_a_row_without_a_distribution_fails(row_value: float) -> None:
    logits = np.zeros((2, 40), np.float32)
    logits[1] = row_value
    for temperature in (0.0, 1.0):
        result = sample(logits, make_batch(2, temperature=temperature, num_logprobs=2))
        assert result.failed_rows == (1,)
        assert result.token_ids[1] == 0


def test_every_token_forbidden_fails() -> None:
    batch = make_batch(1, bias_offsets=[0, 2], bias_ids=[0, 1], bias_values=[-np.inf, -np.inf])
    assert sample(np.zeros((1, 2), np.float32), batch).failed_rows == (0,)


def mask_of(allowed: NDArray[np.bool_]) -> UInt32:
    """Bits [rows, words] of flags [rows, vocab]."""
    padded = np.pad(allowed, ((0, 0), (0, -allowed.shape[1] % 32)))
    return np.ascontiguousarray(np.packbits(padded, axis=1, bitorder="little").view(np.uint32))


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 1000, VOCAB_SIZE])
def test_a_mask_draws_as_if_the_other_tokens_had_no_probability(vocab_size: int) -> None:
    rng = np.random.default_rng(vocab_size)
    logits = rng.normal(0, 3, (12, vocab_size)).astype(np.float32)
    allowed = rng.random((3, vocab_size)) < rng.choice([0.02, 0.5], (3, 1))
    allowed[:, rng.integers(vocab_size)] = True
    mask_rows = rng.integers(-1, 3, 12).astype(np.int32)
    masks = mask_of(allowed)
    masks[:, -1] |= np.uint32(-(1 << (vocab_size - 1) % 32 << 1) & 0xFFFFFFFF)  # bits past the vocabulary mean nothing
    batch = make_batch(12, temperature=0.8, top_p=0.9, num_logprobs=min(5, vocab_size), seed=7)
    result = sample(logits, dataclasses.replace(batch, mask_rows=mask_rows, masks=masks), num_threads=2)
    free = sample(logits, batch)
    cut = np.where((mask_rows >= 0)[:, None] & ~allowed[mask_rows], -np.inf, logits).astype(np.float32)
    np.testing.assert_array_equal(result.token_ids, sample(cut, batch).token_ids)
    np.testing.assert_array_equal(result.top_ids, free.top_ids)
    np.testing.assert_array_equal(result.top_logprobs, free.top_logprobs)
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    drawn = np.take_along_axis(logprobs, result.token_ids[:, None].astype(np.int64), axis=1)[:, 0]
    np.testing.assert_allclose(result.logprobs, drawn, rtol=2e-6, atol=2e-6)


def test_a_mask_that_leaves_nothing_fails_its_row_alone() -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[1, 3] = -np.inf
    allowed = np.zeros((2, 40), np.bool_)
    allowed[0, 3] = True
    batch = dataclasses.replace(make_batch(3), mask_rows=np.array([1, 0, 0], np.int32), masks=mask_of(allowed))
    result = sample(logits, batch)
    assert result.failed_rows == (0, 1)
    assert result.token_ids[2] == 3


def test_a_forced_token_is_reported_with_its_probability() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (8, 300)).astype(np.float32)
    batch = make_batch(8, seed=3, num_logprobs=4)
    forced = np.array([-1, 5, 299, -1, 0, 17, -1, 40], np.int32)
    result, free = sample(logits, dataclasses.replace(batch, forced_ids=forced)), sample(logits, batch)
    np.testing.assert_array_equal(result.token_ids, np.where(forced < 0, free.token_ids, forced))
    logprobs = logits - np.log(np.exp(logits.astype(np.float64)).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(result.logprobs, logprobs[np.arange(8), result.token_ids], rtol=2e-6, atol=2e-6)
    np.testing.assert_array_equal(result.top_ids, free.top_ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forced_ids": np.array([40], np.int32)}, "forced_ids holds 40; allowed are -1 to 39"),
        ({"forced_ids": np.zeros(2, np.int32)}, "forced_ids has 2 entries where 1 are needed"),
        ({"mask_rows": np.array([0], np.int32)}, "mask_rows holds 0; allowed are -1 to -1"),
        ({"masks": np.zeros((1, 1), np.uint32)}, "masks need 2 words a row"),
    ],
)
def test_wrong_choices_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.zeros((1, 40), np.float32), dataclasses.replace(make_batch(1), **changes))


@pytest.mark.parametrize(
    ("cuts", "keep"),
    [({}, 40), ({"top_k": 12}, 12), ({"temperature": 0.6}, 40), ({"top_k": 30, "temperature": 1.8}, 30)],
)
def test_draws_follow_the_distribution(cuts: dict[str, float], keep: int) -> None:
    num_draws = 40_000
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 1, 40).astype(np.float32)
    tokens = sample(np.tile(logits, (num_draws, 1)), make_batch(num_draws, **cuts)).token_ids
    scaled = logits.astype(np.float64) / cuts.get("temperature", 1.0)
    scaled[np.argsort(-scaled)[keep:]] = -np.inf
    expected = np.exp(scaled - scaled.max())
    expected *= num_draws / expected.sum()
    observed = np.bincount(tokens, minlength=40)
    kept = expected > 0
    assert not observed[~kept].any()
    chi_square = float(((observed[kept] - expected[kept]) ** 2 / expected[kept]).sum())
    degrees = keep - 1
    # Wilson and Hilferty: the cube root is nearly normal; 4 deviations is a chance of 3 in 100,000, for a fixed seed.
    deviations = ((chi_square / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))
    assert abs(deviations) < 4


def test_a_draw_depends_on_seed_sample_and_position_alone() -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 1, (1, 1000)).astype(np.float32)
    batch = make_batch(1, seed=11, sample_index=2, position=99)
    alone = sample(logits, batch).token_ids[0]
    crowd = make_batch(9, seed=np.arange(3, 12), sample_index=2, position=99, num_logprobs=3)
    logits_of_9 = np.concatenate([rng.normal(0, 5, (8, 1000)).astype(np.float32), logits])
    assert sample(logits_of_9, crowd).token_ids[8] == alone
    draws = np.tile(logits, (64, 1))
    for name in ("seed", "sample_index", "position"):
        changed = make_batch(64, **{"position": 0, name: np.arange(64)})
        assert len(set(sample(draws, changed).token_ids.tolist())) > 30, name


def test_random_numbers_are_philox() -> None:
    # The known answers published with the paper's library.
    assert reference.philox4x32_10((0, 0, 0, 0), (0, 0)) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = 0xFFFFFFFF
    assert reference.philox4x32_10((ones,) * 4, (ones,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    # A flat row turns the draw into the number itself.
    logits = np.zeros((50, VOCAB_SIZE), np.float32)
    batch = make_batch(50, seed=np.arange(50) * 2**40, sample_index=np.arange(50) % 5)
    expected = [int(reference.uniform(i * 2**40, i % 5, i) * VOCAB_SIZE) for i in range(50)]
    assert sample(logits, batch).token_ids.tolist() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": np.ones(3)}, "temperature has 3 entries where 2 are needed"),
        ({"bias_offsets": [0, 1, 1], "bias_ids": [9], "bias_values": [1.0]}, "bias_ids holds token 9"),
        ({"bias_offsets": [0, 1, 1], "bias_ids": [1], "bias_values": []}, "bias_values has 0 entries"),
        ({"history_offsets": [0, 2, 1], "history_ids": [1], "history_counts": [0]}, "history_offsets must ascend"),
        ({"history_offsets": [0, 0, 1], "history_ids": [-1], "history_counts": [0]}, "history_ids holds token -1"),
        ({"num_logprobs": 10}, "num_logprobs"),
    ],
)
def test_wrong_shapes_and_ids_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample(np.zeros((2, 9), np.float32), make_batch(2, **changes))


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError):
        sample(np.zeros((1, 9), np.float64), make_batch(1))
