"""What the cost model says of a benchmark's rows, beside what was measured; needs the probe of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from subsecond.backends.cost import CostModel, Span
from subsecond.core.errors import FormatError, InputError

if TYPE_CHECKING:
    from subsecond.backends.native.weight_formats import Weights
    from subsecond.models.checkpoint import Checkpoint

HOW_TO_GET = "no prediction: this machine was not measured; `subsecond doctor --measure` does it in some seconds"


def stored_cost(
    checkpoint: Checkpoint, isa: str | None, num_threads: int | None, weights: Weights | None, context_tokens: int
) -> tuple[CostModel | None, str | None]:
    """The cost model of a checkpoint by the stored probe of such kernels, or None and how to get it."""
    from subsecond.backends import probe_store
    from subsecond.backends.native import measuring
    from subsecond.backends.native.prediction import cost_model

    try:
        probe = probe_store.load_probe(measuring.fingerprint(isa, num_threads))
    except (FormatError, InputError) as error:
        return None, f"no prediction: {error}"
    if probe is None:
        return None, HOW_TO_GET
    return cost_model(checkpoint, probe, context_tokens, weights), None


def predicted_row(cost: CostModel, row: Mapping[str, Any], max_rows: int, held_tokens: int) -> dict[str, Any]:
    """Predicted `ttft_ms`, `tpot_ms` and `memory_bytes` of a row, each with `..._error`, predicted / measured - 1.

    TTFT is predicted for one client at a time, since with several it depends on who comes first; TPOT for a known
    number of clients, all of which are answering. `held_tokens` are those whose keys and values lie in memory.
    """
    concurrency = row["concurrency"]
    prompt, output = row["prompt_tokens"] or 1, row["output_tokens"] or 1
    first = min(row["cached_tokens"] or 0, prompt - 1)
    ttft_ms = None
    if concurrency == 1:
        starts = range(first, prompt, max_rows)
        steps = [Span(min(max_rows, prompt - start), start) for start in starts]
        ttft_ms = 1e3 * sum(cost.step_s([step], int(step is steps[-1])) for step in steps)
    tpot_ms = None if concurrency is None else 1e3 * cost.tpot_s(prompt + output // 2, concurrency)
    memory = cost.memory(held_tokens, max_rows)
    return {
        "ttft_ms": _rounded(ttft_ms),
        "ttft_error": _error(ttft_ms, _median(row["ttft_ms"])),
        "tpot_ms": _rounded(tpot_ms),
        "tpot_error": _error(tpot_ms, _median(row["tpot_ms"])),
        "memory_bytes": memory.num_bytes,
        "memory_error": _error(memory.num_bytes, row.get("model_memory_bytes")),
    }


def _median(figures: Mapping[str, Any] | None) -> float | None:
    return None if figures is None else float(figures["median"])


def _error(predicted: float | None, measured: float | None) -> float | None:
    return None if predicted is None or not measured else round(predicted / measured - 1, 4)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
