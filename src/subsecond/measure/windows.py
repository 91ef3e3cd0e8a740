"""Cuts a text into windows of tokens, the unit that quality is measured on; evaluates nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from subsecond.backends.batch import Int32
from subsecond.core.errors import InputError


def windows_of_text(text: str, encode: Callable[[str], Sequence[int]], num_windows: int, window_len: int) -> Int32:
    """The first `num_windows` runs of `window_len` consecutive tokens of `text`, int32 [num_windows, window_len].

    `encode` turns a text into token ids and should add no special tokens; a window begins in the middle of a sentence
    as it comes. A text that is too short is a InputError.
    """
    return windows_of_tokens(encode(text), num_windows, window_len)


def windows_of_tokens(token_ids: Sequence[int] | Int32, num_windows: int, window_len: int) -> Int32:
    """As `windows_of_text`, of tokens."""
    if num_windows < 1 or window_len < 2:
        raise InputError(
            f"{num_windows} windows of {window_len} tokens were asked for; at least 1 window is needed, and at least 2 "
            "tokens in each, because the first is never predicted"
        )
    needed = num_windows * window_len
    if len(token_ids) < needed:
        possible = len(token_ids) // window_len
        raise InputError(
            f"the text has {len(token_ids)} tokens, but {num_windows} windows of {window_len} need {needed}; "
            f"ask for at most {possible} windows of this length, or give a longer text"
        )
    return np.asarray(token_ids[:needed], dtype=np.int32).reshape(num_windows, window_len)


@dataclass(frozen=True, slots=True)
class Window:
    """Consecutive tokens int32 [tokens], read from position 0; those from index `first_scored` on (1 or more) count."""

    token_ids: Int32
    first_scored: int

    @property
    def num_scored(self) -> int:
        """Tokens whose prediction counts."""
        return len(self.token_ids) - self.first_scored


def sliding_windows(
    token_ids: Sequence[int] | Int32,
    window_tokens: int,
    stride: int | None = None,
    num_windows: int | None = None,
    bos_id: int | None = None,
) -> list[Window]:
    """Windows that begin every `stride` tokens (None: one after the other, without overlap).

    The first scores all its tokens but the first; each later one its last `stride` tokens, which the one before did not
    have, so no token counts twice (the strided perplexity of the transformers documentation on models of fixed length).
    Without overlap the first token of each window is never scored. Exactly `num_windows` whole windows are made, or
    with None as many as the text has, the last one shorter. `bos_id` takes the place of each window's first token, for
    models that are lost without one; what is scored stays the same.

    Raises:
        InputError: a number is not allowed, or the text is too short.
    """
    stride = window_tokens if stride is None else stride
    if window_tokens < 2 or not 1 <= stride <= window_tokens or (num_windows is not None and num_windows < 1):
        raise InputError(
            f"{num_windows} windows of {window_tokens} tokens with stride {stride} cannot be made; needed are at least "
            "1 window, 2 tokens in each, and a stride from 1 up to the tokens of a window"
        )
    ids = np.asarray(token_ids, dtype=np.int32)
    if num_windows is not None and len(ids) < (num_windows - 1) * stride + window_tokens:
        raise InputError(
            f"the text has {len(ids)} tokens, but {num_windows} windows of {window_tokens} with stride {stride} need "
            f"{(num_windows - 1) * stride + window_tokens}; ask for at most "
            f"{max(0, (len(ids) - window_tokens) // stride + 1)} windows of this length, or give a longer text"
        )
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; at least 2 are needed, because the first is never predicted")
    found: list[Window] = []
    end = 0
    for start in range(0, len(ids), stride):
        if len(found) == num_windows or end == len(ids):
            break
        scored_from, end = end, min(start + window_tokens, len(ids))
        if end - start < 2:
            break
        window = ids[start:end].copy()
        if bos_id is not None:
            window[0] = bos_id
        found.append(Window(window, max(1, scored_from - start)))
    return found
