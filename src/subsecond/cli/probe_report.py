"""What `doctor` says of this machine's measured speed, and of a model on it; measures only when it is told to."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from subsecond.cli.output import size_text
from subsecond.core.errors import FormatError, InputError

HOW_TO_MEASURE = "not measured yet; `subsecond doctor --measure` does it in some seconds"
PROMPT_TOKENS = 512
CONTEXT_TOKENS = 2048
MAX_ROWS = 512  # of one step
LOGITS = 100_000
BUSY_SHARE = 0.03  # of the processors' time; more falsifies figures


def probe_report(is_measured: bool, model: str | None) -> dict[str, Any]:
    """The stored figures, measured first if `is_measured`, or why there are none; and what they predict for `model`."""
    from subsecond.backends import probe_store
    from subsecond.backends.native import measuring

    try:
        owner = measuring.fingerprint()
        path = str(probe_store.probe_path(owner))
        if is_measured:
            print("measuring for some seconds", file=sys.stderr)
            probe = measuring.measure()
            probe_store.save_probe(probe)
        else:
            stored = probe_store.load_probe(owner)
            if stored is None:
                return {"path": path, "error": HOW_TO_MEASURE, "figures": None, "prediction": None}
            probe = stored
    except (FormatError, InputError) as error:
        return {"path": None, "error": str(error), "figures": None, "prediction": None}
    prediction = None if model is None else _prediction(model, probe)
    return {"path": path, "error": None, "figures": probe_store.probe_json(probe), "prediction": prediction}


def probe_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lines of a table for people."""
    if report["error"] is not None:
        return [("speed", report["error"])]
    figures = report["figures"]
    owner, overheads = figures["fingerprint"], figures["overheads"]
    token_s = overheads["sample_s"] + overheads["logit_s"] * LOGITS
    microseconds = {
        "step": overheads["step_s"],
        "pool": overheads["run_s"],
        "operator": overheads["call_s"],
        "barrier": overheads["barrier_s"],
        f"token of {LOGITS:,} logits": token_s,
    }
    busy = 1.0 - figures["processor_share"]
    warning = f"other programs took {busy:.0%} of the processors meanwhile, measure again without them"
    return [
        ("speed", f"{owner['isa']} kernels with {owner['num_threads']} threads; kept in {report['path']}"),
        *([("speed", warning)] if busy > BUSY_SHARE else []),
        *(("peak", line) for line in _peak_lines(figures["peaks"])),
        *(("read", line) for line in _read_lines(figures["read_rates"])),
        ("overhead", ", ".join(f"{name} {seconds * 1e6:.2f} us" for name, seconds in microseconds.items())),
        *(("linear", _linear_line(name, speed)) for name, speed in figures["linears"].items()),
        *_prediction_rows(report["prediction"]),
    ]


def _peak_lines(peaks: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    found: dict[str, list[str]] = {}
    for peak in peaks:
        rate = f"{peak['operations_s'] / 1e12:.3g}"
        found.setdefault(f"{peak['isa']} {peak['instruction']}", []).append(_by_threads(rate, peak["num_threads"]))
    return (f"{name}, 10^12 operations/s: {', '.join(texts)}" for name, texts in found.items())


def _read_lines(rates: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    found: dict[int, list[str]] = {}
    for rate in rates:
        text = _by_threads(f"{rate['bytes_s'] / 1e9:.3g}", rate["num_threads"])
        found.setdefault(rate["thread_bytes"], []).append(text)
    return (f"{num_bytes >> 20} MiB a thread, GB/s: {', '.join(texts)}" for num_bytes, texts in found.items())


def _by_threads(figure: str, num_threads: int) -> str:
    return f"{figure} with {num_threads} thread{'s' if num_threads > 1 else ''}"


def _linear_line(name: str, speed: Mapping[str, Any]) -> str:
    rows, seconds = speed["weight_s"]["rows"], speed["weight_s"]["seconds"]
    return (
        f"{name}: {speed['weight_bytes'] / seconds[0] / 1e9:.3g} GB/s with one row and weights in cache, "
        f"{min(speed['stream']['shares']):.0%} to {max(speed['stream']['shares']):.0%} of the read rate from memory, "
        f"{2 * rows[-1] / seconds[-1] / 1e12:.3g} x 10^12 operations/s with {rows[-1]} rows"
    )


def _prediction(model: str, probe: Any) -> dict[str, Any]:
    """Times and bytes of a model that is loaded for CONTEXT_TOKENS."""
    from subsecond.backends.native.prediction import cost_model
    from subsecond.models.checkpoint import open_checkpoint
    from subsecond.models.store import resolve

    checkpoint = open_checkpoint(resolve(model))
    cost = cost_model(checkpoint, probe, min(CONTEXT_TOKENS, checkpoint.config.context_length))
    memory = cost.memory(CONTEXT_TOKENS, MAX_ROWS)
    return {
        "model": checkpoint.config.name,
        "num_prompt_tokens": PROMPT_TOKENS,
        "context_tokens": CONTEXT_TOKENS,
        "ttft_ms": round(cost.ttft_s(PROMPT_TOKENS, MAX_ROWS) * 1e3, 2),
        "tpot_ms": round(cost.tpot_s(PROMPT_TOKENS) * 1e3, 3),
        "weight_bytes": memory.weight_bytes,
        "kv_bytes": memory.kv_bytes,
        "arena_bytes": memory.arena_bytes,
        "assumptions": list(cost.assumptions),
    }


def _prediction_rows(prediction: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if prediction is None:
        return []
    sizes: Sequence[str] = [size_text(prediction[f"{part}_bytes"]) for part in ("weight", "kv", "arena")]
    text = (
        f"{prediction['model']}: TTFT {prediction['ttft_ms']:.0f} ms for {prediction['num_prompt_tokens']} tokens, "
        f"then {1e3 / prediction['tpot_ms']:.1f} tokens/s; {sizes[0]} of weights, {sizes[1]} for "
        f"{prediction['context_tokens']} tokens, {sizes[2]} of arenas"
    )
    return [("predicted", text), *(("assumed", line) for line in prediction["assumptions"])]
