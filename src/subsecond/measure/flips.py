"""Tokens of a text whose most likely next token differs between candidate and reference; runs no model itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from subsecond.backends.batch import Float32, Int32

MAX_WINDOW_FLIPS = 50  # that are kept of a window
NUM_TOP = 3


@dataclass(frozen=True, slots=True)
class Flip:
    """A position after which candidate and reference would go on with different tokens.

    position     of the last token that both have read, in its window
    next_id      the token that follows in the text
    reference    (token id, probability) of the reference's most likely tokens, most likely first
    candidate    the same of the candidate
    """

    position: int
    next_id: int
    reference: tuple[tuple[int, float], ...]
    candidate: tuple[tuple[int, float], ...]

    @property
    def sureness(self) -> float:
        """Probability that the reference gave to its own choice."""
        return self.reference[0][1]


def find_flips(reference: Float32, candidate: Float32, window: Int32) -> tuple[int, list[Flip]]:
    """How many positions flipped, and the MAX_WINDOW_FLIPS of which the reference was surest, surest first.

    Logits are [window_len, vocab]; those after the last token are left out, as nothing follows it in the text. On a
    tie the lowest token is the most likely one.
    """
    rows = np.flatnonzero(reference[:-1].argmax(axis=1) != candidate[:-1].argmax(axis=1))
    flips = [
        Flip(int(row), int(window[row + 1]), top_tokens(reference[row]), top_tokens(candidate[row])) for row in rows
    ]
    return len(flips), sorted(flips, key=lambda flip: -flip.sureness)[:MAX_WINDOW_FLIPS]


def top_tokens(logits: Float32, num_top: int = NUM_TOP) -> tuple[tuple[int, float], ...]:
    """(token id, probability) of the most likely tokens of a row of logits [vocab], most likely first."""
    wide = logits.astype(np.float64)
    exps = np.exp(wide - wide.max())
    order = np.argsort(-wide, kind="stable")[:num_top]
    return tuple((int(token_id), float(exps[token_id] / exps.sum())) for token_id in order)


def token_probability(logits: Float32, token_id: int) -> float:
    """Probability of one token of a row of logits [vocab]."""
    wide = logits.astype(np.float64)
    return float(np.exp(wide[token_id] - wide.max()) / np.exp(wide - wide.max()).sum())
