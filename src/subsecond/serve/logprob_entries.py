"""Log-probabilities of tokens as APIs write them: the token as text and as bytes beside its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from subsecond.engine.text import TokenLogprobs

TokenBytes = Callable[[int], bytes]
"""The bytes that a token stands for, by its id."""


def logprob_entries(logprobs: Iterable[TokenLogprobs], token_bytes: TokenBytes) -> list[dict[str, Any]]:
    """Return one entry a token, with the most likely ones at its place."""
    return [
        {
            **_entry(token_bytes(each.token_id), each.logprob),
            "top_logprobs": [_entry(token_bytes(token_id), logprob) for token_id, logprob in each.top],
        }
        for each in logprobs
    ]


def _entry(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": logprob}
