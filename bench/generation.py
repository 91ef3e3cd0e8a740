"""Times one generation of ours, through the engine; several sequences are requests submitted at once.

Run: python -m bench.generation MODEL PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES] [--weights stored|int8|int4]
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Sequence

import subsecond
from bench.timing import LEAD_TOKENS, Workload, run
from subsecond.backends import native
from subsecond.engine.request import Request, SamplingParams

BLOCK_TOKENS = 32  # a sequence's last block of key/value memory is its own, however little it holds


class Program:
    """Our engine with a model, with key/value memory for the workload and a warm-up of the same shape."""

    def __init__(self, options: argparse.Namespace, workload: Workload) -> None:
        more = {} if options.weights is None else {"weights": options.weights}
        num_tokens = 2 * workload.num_sequences * (workload.num_context_tokens + BLOCK_TOKENS)
        self._model = subsecond.load(options.model, num_threads=options.threads, context_tokens=num_tokens, **more)
        self._request_numbers = itertools.count()
        self.version = subsecond.__version__
        self.system_info = f"{native.choose_isa()} kernels, {self._model.backend.variant}"

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        """Read one token of each stream in turn; the engine runs on its own thread meanwhile."""
        num_lead = LEAD_TOKENS if len(prompts) > 1 else 0
        params = SamplingParams(max_tokens=num_new_tokens + num_lead, ignore_eos=True)
        requests = [Request(tuple(prompt), params, f"bench-{next(self._request_numbers)}") for prompt in prompts]
        streams = [iter(self._model.engine.submit(request)) for request in requests]
        stamps = []
        for _ in range(num_new_tokens):
            for stream in streams:
                next(stream)
            stamps.append(time.perf_counter())
        for stream in streams:
            stream.close()
        return stamps


if __name__ == "__main__":
    run(Program, ("--weights", {"help": "class of weights, as subsecond.load takes it; left out, its default"}))
