"""Times one generation in this process and prints it as JSON; bench/run.py starts a fresh one for every sample.

Run: python -m bench.generation MODEL PROMPT_TOKENS NEW_TOKENS [THREADS]
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

import subsecond
from subsecond.engine.request import Request, SamplingParams

WARMUP_TOKENS = 8


def prompt_of(num_tokens: int, vocab_size: int) -> list[int]:
    """A prompt without meaning; speed does not depend on it."""
    return [1000 + 37 * i % (vocab_size // 2) for i in range(num_tokens)]


def time_generation(model: subsecond.Model, prompt_ids: list[int], num_tokens: int) -> dict[str, object]:
    """Milliseconds of the prompt (to the first token) and of every later token, through the engine."""
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    stamps = [time.perf_counter()]
    ids = []
    for event in model.engine.submit(Request(tuple(prompt_ids), params, f"bench-{len(prompt_ids)}-{num_tokens}")):
        stamps.append(time.perf_counter())
        ids.append(event.token_id)
    steps = [(after - before) * 1e3 for before, after in pairwise(stamps)]
    return {"prefill_ms": steps[0], "step_ms": steps[1:], "token_ids": ids}


def main() -> None:
    """Load, warm up with a short other prompt, time."""
    path, num_prompt, num_new, *rest = sys.argv[1:]
    with subsecond.load(path, num_threads=int(rest[0]) if rest else None) as model:
        vocab_size = model.backend.vocab_size
        time_generation(model, prompt_of(WARMUP_TOKENS, vocab_size), WARMUP_TOKENS)
        result = time_generation(model, prompt_of(int(num_prompt), vocab_size)[::-1], int(num_new))
        print(json.dumps({"load_ms": model.load_ms, "variant": model.backend.variant, **result}))


if __name__ == "__main__":
    main()
