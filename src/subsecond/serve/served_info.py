"""How an answer was served, as the object `subsecond` in bodies and last events of every API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from subsecond.serve.answers import ServedInfo


def served_fields(info: ServedInfo, left_out: Sequence[str] = ()) -> dict[str, Any]:
    """Return the object; `left_out` names what the request had and the answer goes without."""
    fields: dict[str, Any] = {
        "artifact": info.artifact,
        "variant": info.variant,
        "kernels": info.kernels,
        "queue_ms": _rounded(info.queue_ms),
        "prefill_ms": _rounded(info.prefill_ms),
        "decode_ms": _rounded(info.decode_ms),
        "num_prompt_tokens": info.num_prompt_tokens,
        "cached_tokens": info.cached_tokens,
        "seed": info.seed,
        "is_deadline_passed": info.is_deadline_passed,
    }
    if info.unenforced:
        fields["unenforced"] = list(info.unenforced)
    return fields | {"left_out": list(left_out)} if left_out else fields


def _rounded(ms: float | None) -> float | None:
    return None if ms is None else round(ms, 3)
