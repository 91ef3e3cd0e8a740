"""Cuts a text into windows of tokens, the unit that quality is measured on; evaluates nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
