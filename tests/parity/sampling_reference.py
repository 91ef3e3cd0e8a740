"""The sampler written plainly: sorts the whole vocabulary, works in double, one row at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from subsecond.backends.batch import Float32, SampleBatch, SampleResult

MASK_32 = 0xFFFFFFFF


def philox4x32_10(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of Philox 4x32 with ten rounds (Salmon et al., 2011)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        first = 0xD2511F53 * c0
        second = 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (second >> 32) ^ c1 ^ k0, second & MASK_32, (first >> 32) ^ c3 ^ k1, first & MASK_32
        k0 = (k0 + 0x9E3779B9) & MASK_32
        k1 = (k1 + 0xBB67AE85) & MASK_32
    return c0, c1, c2, c3


def uniform(seed: int, sample_index: int, position: int) -> float:
    """The first 53 random bits of a block as a fraction in [0, 1)."""
    high, low, _, _ = philox4x32_10((position & MASK_32, sample_index & MASK_32, 0, 0), (seed & MASK_32, seed >> 32))
    return float(((high << 32) | low) >> 11) * 2.0**-53


def adjusted_logits(logits: Float32, batch: SampleBatch, row: int) -> Float32:
    """One row after bias and penalties, NaN as -inf; float32 like the kernel, so that ties stay ties."""
    values = logits.copy()
    for i in range(batch.bias_offsets[row], batch.bias_offsets[row + 1]):
        values[batch.bias_ids[i]] += batch.bias_values[i]
    for i in range(batch.history_offsets[row], batch.history_offsets[row + 1]):
        token, count = batch.history_ids[i], batch.history_counts[i]
        penalty = batch.repetition_penalty[row]
        values[token] = values[token] / penalty if values[token] > 0 else values[token] * penalty
        if count > 0:
            values[token] -= batch.presence_penalty[row]
            values[token] -= batch.frequency_penalty[row] * np.float32(count)
    values[np.isnan(values)] = -np.inf
    return values


def kept_weights(values: Float32, batch: SampleBatch, row: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Token ids and unnormalized weights that temperature and the cuts leave, most likely first."""
    order = np.argsort(-values.astype(np.float64), kind="stable")
    scaled = (values.astype(np.float64) - float(values.max())) / float(batch.temperature[row])
    weights = np.exp(scaled[order])
    count = len(order) if batch.top_k[row] == 0 else min(int(batch.top_k[row]), len(order))
    if batch.top_p[row] < 1:
        cumulative = np.cumsum(weights[:count])
        count = min(count, int(np.argmax(cumulative >= float(batch.top_p[row]) * cumulative[-1])) + 1)
    if batch.min_p[row] > 0:
        count = min(count, max(1, int((weights >= float(batch.min_p[row])).sum())))
    return order[:count], weights[:count]


def sample_row(logits: Float32, batch: SampleBatch, row: int) -> tuple[int, float, NDArray[np.int64], Float32]:
    """Token, its log-probability, and the most likely tokens with theirs."""
    values = adjusted_logits(logits, batch, row)
    wide = values.astype(np.float64)
    logprobs = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    if batch.temperature[row] == 0:
        token = int(np.argmax(values))
    else:
        ids, weights = kept_weights(values, batch, row)
        cumulative = np.cumsum(weights)
        target = uniform(int(batch.seed[row]), int(batch.sample_index[row]), int(batch.position[row])) * cumulative[-1]
        token = int(ids[min(int(np.searchsorted(cumulative, target, side="right")), len(ids) - 1)])
    top = np.argsort(-wide, kind="stable")[: batch.num_logprobs]
    return token, float(logprobs[token]), top, logprobs[top].astype(np.float32)


def sample(logits: Float32, batch: SampleBatch) -> SampleResult:
    """The answer that `subsecond.backends.sampling.sample` must give; log-probabilities up to rounding."""
    rows = [sample_row(logits[row], batch, row) for row in range(len(logits))]
    return SampleResult(
        np.array([row[0] for row in rows], np.int32),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int32).reshape(len(rows), batch.num_logprobs),
        np.array([row[3] for row in rows], np.float32).reshape(len(rows), batch.num_logprobs),
    )
