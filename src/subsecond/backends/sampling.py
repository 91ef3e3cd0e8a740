"""Draws tokens from rows of logits on the processor, through the native sampler; every backend may use it."""

from __future__ import annotations

import numpy as np

from subsecond import _native
from subsecond.backends.batch import Float32, SampleBatch, SampleResult


def sample(logits: Float32, batch: SampleBatch, *, isa: str = "", num_threads: int = 1) -> SampleResult:
    """Draw one token from each row of `logits` [rows, vocab], a contiguous array that is left unchanged.

    `isa` is the instruction set to use, "" for the best here; it changes no bit of the result, nor do the threads.

    Order: logit bias, repetition penalty, presence and frequency penalties; log-probabilities are of the distribution
    at this point. A mask leaves out tokens for the draw alone. Temperature 0 takes the most likely token; otherwise
    temperature, top_k, top_p (of the mass that top_k left), min_p and a draw in order of falling probability, lower ids
    first on a tie. NaN counts as -inf.
    """
    token_ids, logprobs, top_ids, top_logprobs, has_failed = _native.sample(
        logits,
        batch.temperature,
        batch.top_k,
        batch.top_p,
        batch.min_p,
        batch.repetition_penalty,
        batch.presence_penalty,
        batch.frequency_penalty,
        batch.seed,
        batch.sample_index,
        batch.position,
        batch.bias_offsets,
        batch.bias_ids,
        batch.bias_values,
        batch.history_offsets,
        batch.history_ids,
        batch.history_counts,
        batch.forced_ids,
        batch.mask_rows,
        batch.masks,
        batch.num_logprobs,
        isa,
        num_threads,
    )
    failed_rows = tuple(np.flatnonzero(has_failed).tolist())
    return SampleResult(token_ids, logprobs, top_ids, top_logprobs, failed_rows)
