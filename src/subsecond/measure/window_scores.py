"""Scores windows of text on a backend, alone or against a reference, and keeps the tokens that differ most."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from subsecond.backends.batch import Float32
from subsecond.backends.protocol import Backend
from subsecond.core.errors import InputError
from subsecond.measure.evaluation import window_batch
from subsecond.measure.quality import Float64, RowQuality, compare_logits, token_nll
from subsecond.measure.windows import Window

NUM_WORST = 8  # tokens with the largest divergence that are kept of each window
NUM_TOP = 3  # most likely tokens that are kept of each of them
CONTEXT_TOKENS = 24

TopTokens = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class TokenDivergence:
    """A place where candidate and reference differ: KL in nats, the tokens before it and the one that followed.

    `reference_top` and `candidate_top` are (token id, probability), most likely first.
    """

    kl: float
    context_ids: tuple[int, ...]
    target_id: int
    reference_top: TopTokens
    candidate_top: TopTokens


@dataclass(frozen=True, slots=True)
class WindowScores:
    """Figures of each scored token of a window, in nats; what needs a reference is None without one."""

    nll: Float64
    against_reference: RowQuality | None
    worst: tuple[TokenDivergence, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON data, without loss."""
        rows = self.against_reference
        found: dict[str, Any] = {"nll": self.nll.tolist(), "worst": [asdict(each) for each in self.worst]}
        if rows is not None:
            found["kl"], found["nll_reference"] = rows.kl.tolist(), rows.nll_reference.tolist()
            found["is_top1_equal"] = rows.is_top1_equal.tolist()
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> WindowScores:
        """What `to_json` gave."""
        nll, rows = np.array(data["nll"]), None
        if "kl" in data:
            is_top1_equal = np.array(data["is_top1_equal"], dtype=np.bool_)
            rows = RowQuality(np.array(data["kl"]), is_top1_equal, np.array(data["nll_reference"]), nll)
        worst = tuple(
            TokenDivergence(
                each["kl"],
                tuple(each["context_ids"]),
                each["target_id"],
                tuple((int(token_id), float(share)) for token_id, share in each["reference_top"]),
                tuple((int(token_id), float(share)) for token_id, share in each["candidate_top"]),
            )
            for each in data["worst"]
        )
        return cls(nll, rows, worst)


def score_window(candidate: Backend, reference: Backend | None, window: Window) -> WindowScores:
    """Run a window through the candidate, and through the reference where there is one.

    Nobody else may use the backends' blocks meanwhile. A window that a backend cannot hold, and logits that cannot be
    compared, are an InputError.
    """
    chunk = min(each.max_rows for each in (candidate, reference) if each is not None)
    steps = scored_logits(candidate, window, chunk)
    if reference is None:
        nll = [token_nll(logits, window.token_ids[start:end]) for start, end, logits in steps]
        return WindowScores(np.concatenate(nll), None, ())
    rows: list[RowQuality] = []
    worst: list[TokenDivergence] = []
    for (start, end, given), (_, _, expected) in zip(steps, scored_logits(reference, window, chunk), strict=True):
        rows.append(compare_logits(expected, given, window.token_ids[start:end]))
        for row in np.argsort(-rows[-1].kl)[:NUM_WORST]:
            at = start + int(row)
            context = tuple(window.token_ids[max(0, at - CONTEXT_TOKENS) : at].tolist())
            tops = _top_tokens(expected[row]), _top_tokens(given[row])
            worst.append(TokenDivergence(float(rows[-1].kl[row]), context, int(window.token_ids[at]), *tops))
    joined = RowQuality(
        np.concatenate([each.kl for each in rows]),
        np.concatenate([each.is_top1_equal for each in rows]),
        np.concatenate([each.nll_reference for each in rows]),
        np.concatenate([each.nll for each in rows]),
    )
    return WindowScores(joined.nll, joined, tuple(heapq.nlargest(NUM_WORST, worst, key=lambda each: each.kl)))


def scored_logits(backend: Backend, window: Window, chunk: int) -> Iterator[tuple[int, int, Float32]]:
    """Yield (start, end, logits [end - start, vocab]) that predict the scored tokens [start, end) of the window.

    Each step has at most `chunk` rows; logits are valid until the next step of the backend.
    """
    num_blocks = -(-len(window.token_ids) // backend.block_tokens)
    if num_blocks > backend.num_blocks:
        raise InputError(
            f"a window of {len(window.token_ids)} tokens does not fit into the key/value memory of "
            f"{backend.num_blocks * backend.block_tokens} tokens; give it more, or use shorter windows"
        )
    # the last token predicts nothing
    for first in range(0, len(window.token_ids) - 1, chunk):
        last = min(first + chunk, len(window.token_ids) - 1)
        scored = max(first + 1, window.first_scored)
        selected = np.arange(min(scored - 1, last) - first, last - first, dtype=np.int32)
        batch = window_batch(window.token_ids, first, last, num_blocks)
        logits = backend.forward(replace(batch, logits_rows=selected))
        if scored <= last:
            yield scored, last + 1, logits


def _top_tokens(logits: Float32) -> TopTokens:
    wide = logits.astype(np.float64)
    shares = np.exp(wide - wide.max())
    shares /= shares.sum()
    top = np.argpartition(-shares, NUM_TOP)[:NUM_TOP] if len(shares) > NUM_TOP else np.arange(len(shares))
    top = top[np.argsort(-shares[top], kind="stable")]
    return tuple((int(token_id), float(shares[token_id])) for token_id in top)
