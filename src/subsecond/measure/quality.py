"""How far a candidate's logits are from a reference's: KL divergence, top-1 agreement, perplexity; pure numpy.

Scoring convention: every position of a window but the last predicts the next token of its window, from position 0 with
no context before it. So a window of n tokens scores n - 1 rows, and the logits of its last row are not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from subsecond.backends.batch import Float32, Int32
from subsecond.core.errors import InputError

Float64 = NDArray[np.float64]

# Rows of logits that are worked on at once: with 150 000 tokens 19 MB a temporary.
_CHUNK_ROWS = 16
_NUM_RESAMPLES = 1000
_SEED = 20240229


@dataclass(frozen=True, slots=True)
class RowQuality:
    """One entry a row: KL(reference || candidate) and negative log-likelihoods in nats, and same most likely token."""

    kl: Float64
    is_top1_equal: NDArray[np.bool_]
    nll_reference: Float64
    nll: Float64


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % bootstrap interval over windows; with one window the interval is the figure itself."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        """The three numbers by name."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class QualityReport:
    """Quality of a candidate over `num_windows` windows with `num_tokens` scored tokens; KL in nats a token.

    The intervals are paired: one resampling of the windows serves all figures, of candidate and reference alike, so
    `perplexity_ratio` (candidate / reference) is much sharper than the two perplexities.
    """

    num_windows: int
    num_tokens: int
    perplexity_reference: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate
    mean_kl: Estimate
    median_kl: Estimate
    p99_kl: Estimate
    top1_agreement: Estimate

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)


def compare_logits(reference: Float32, candidate: Float32, targets: Int32) -> RowQuality:
    """Compare logits [rows, vocab] row by row; `targets` int32 [rows] are the tokens that followed.

    KL is sum p_ref (log p_ref - log p_cand), computed in float64, so that the divergence of nearly equal logits, which
    is the square of a small difference, keeps its digits. On a tie the lowest token is the most likely one. Different
    shapes, targets outside the vocabulary and logits that are not finite are an InputError.
    """
    _check_logits(reference, candidate, targets)
    num_rows = len(reference)
    kl, nll_reference, nll = np.empty(num_rows), np.empty(num_rows), np.empty(num_rows)
    is_top1_equal = np.empty(num_rows, dtype=np.bool_)
    for start in range(0, num_rows, _CHUNK_ROWS):
        rows = slice(start, min(start + _CHUNK_ROWS, num_rows))
        ref, cand = reference[rows].astype(np.float64), candidate[rows].astype(np.float64)
        targets_chunk = targets[rows, np.newaxis]
        top_ref, top_cand = ref.argmax(axis=1), cand.argmax(axis=1)
        exps_ref, sum_ref, log_sum_ref = _softmax_parts(ref, top_ref)
        _, _, log_sum_cand = _softmax_parts(cand, top_cand)
        exps_ref *= ref - cand
        kl[rows] = exps_ref.sum(axis=1) / sum_ref - log_sum_ref + log_sum_cand
        is_top1_equal[rows] = top_ref == top_cand
        nll_reference[rows] = log_sum_ref - np.take_along_axis(ref, targets_chunk, axis=1)[:, 0]
        nll[rows] = log_sum_cand - np.take_along_axis(cand, targets_chunk, axis=1)[:, 0]
    _check_finite(kl, nll, nll_reference)
    return RowQuality(np.maximum(kl, 0.0), is_top1_equal, nll_reference, nll)


def token_nll(logits: Float32, targets: Int32) -> Float64:
    """Negative log-likelihood in nats of `targets` int32 [rows] by logits [rows, vocab]; errors as above."""
    _check_logits(logits, logits, targets)
    nll = np.empty(len(logits))
    for start in range(0, len(logits), _CHUNK_ROWS):
        rows = slice(start, min(start + _CHUNK_ROWS, len(logits)))
        wide = logits[rows].astype(np.float64)
        _, _, log_sum = _softmax_parts(wide, wide.argmax(axis=1))
        nll[rows] = log_sum - np.take_along_axis(wide, targets[rows, np.newaxis], axis=1)[:, 0]
    _check_finite(nll)
    return nll


def bootstrap(num_units: int, figures: Callable[[NDArray[np.intp]], Sequence[float]]) -> list[Estimate]:
    """Figures with their 95 % intervals: percentile bootstrap (Efron 1979) over units such as windows or questions.

    `figures` computes all figures of the units with the given indices, which may repeat. One resampling serves them
    all, so figures of two models over the same units are paired. The resampling is the same at each call.
    """
    rng = np.random.default_rng(_SEED)
    resampled = [figures(rng.integers(num_units, size=num_units)) for _ in range(_NUM_RESAMPLES)]
    lows, highs = np.quantile(np.array(resampled), (0.025, 0.975), axis=0)
    values = figures(np.arange(num_units))
    return [Estimate(float(v), float(low), float(high)) for v, low, high in zip(values, lows, highs, strict=True)]


def perplexity_of(windows: Sequence[Float64]) -> Estimate:
    """Perplexity from the negative log-likelihoods of each window's scored tokens; needs at least one window."""
    sums, counts = np.array([nll.sum() for nll in windows]), np.array([len(nll) for nll in windows])

    def figures(chosen: NDArray[np.intp]) -> tuple[float]:
        return (float(np.exp(sums[chosen].sum() / counts[chosen].sum())),)

    return bootstrap(len(windows), figures)[0]


def summarize(windows: Sequence[RowQuality]) -> QualityReport:
    """The report of a candidate from its rows, one entry a window; needs at least one window.

    Every scored token counts the same, also where windows have scored different numbers of them.
    """
    if not windows:
        raise InputError("no window was evaluated; quality needs at least one")
    kl = [window.kl for window in windows]
    counts = np.array([len(rows) for rows in kl])
    sums = np.array([_sums(window) for window in windows])

    def figures(chosen: NDArray[np.intp]) -> tuple[float, ...]:
        median, p99 = np.quantile(np.concatenate([kl[index] for index in chosen]), (0.5, 0.99))
        mean_kl, agreement, log_reference, log_candidate = sums[chosen].sum(axis=0) / counts[chosen].sum()
        perplexities = np.exp((log_reference, log_candidate, log_candidate - log_reference))
        return (*perplexities, mean_kl, median, p99, agreement)

    return QualityReport(len(windows), int(counts.sum()), *bootstrap(len(windows), figures))


def _sums(window: RowQuality) -> tuple[float, float, float, float]:
    columns = (window.kl, window.is_top1_equal, window.nll_reference, window.nll)
    kl, agreement, nll_reference, nll = (float(column.sum()) for column in columns)
    return kl, agreement, nll_reference, nll


def _softmax_parts(logits: Float64, top: NDArray[np.intp]) -> tuple[Float64, Float64, Float64]:
    """exp(logits - maximum), its sum, and the logarithm of the sum of exp(logits); `top` is where the maximum is."""
    maximum = np.take_along_axis(logits, top[:, np.newaxis], axis=1)
    exps = logits - maximum
    np.exp(exps, out=exps)
    total = exps.sum(axis=1)
    return exps, total, maximum[:, 0] + np.log(total)


def _check_finite(*figures: Float64) -> None:
    if not all(np.isfinite(each).all() for each in figures):
        raise InputError("the logits hold NaN or infinity, so they cannot be compared")


def _check_logits(reference: Float32, candidate: Float32, targets: Int32) -> None:
    if reference.ndim != 2 or reference.shape != candidate.shape or targets.shape != reference.shape[:1]:
        raise InputError(
            f"reference logits have shape {reference.shape}, the candidate's {candidate.shape} and targets "
            f"{targets.shape}; needed are [rows, vocab] twice and [rows]: is it the same vocabulary?"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < reference.shape[1]:
        raise InputError(
            f"token ids {targets.min()} to {targets.max()} were given, but the vocabulary has {reference.shape[1]}"
        )
