"""Times generations of vLLM on the processor, step by step in this process; runs in its own environment.

Run: python -m bench.peers.vllm.generation FOLDER PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES]
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Sequence

from bench.timing import LEAD_TOKENS, Workload, run, stamp_rounds

# read when vllm is imported: the engine in this process, where it can be stepped, and its memory in GB
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")

import vllm


class Program:
    """An engine in bfloat16 without compilation, whose prefix cache is off."""

    def __init__(self, options: argparse.Namespace, workload: Workload) -> None:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, sorted(os.sched_getaffinity(0))[: options.threads]))
        model = vllm.LLM(
            options.model,
            dtype="bfloat16",
            enforce_eager=True,
            skip_tokenizer_init=True,
            enable_prefix_caching=False,
            max_model_len=workload.num_context_tokens,
            max_num_batched_tokens=max(2048, workload.num_context_tokens),
            max_num_seqs=max(8, workload.num_sequences),
        )
        self._engine = model.llm_engine
        self._request_ids = itertools.count()
        self.version = f"vllm-cpu {vllm.__version__}"
        self.system_info = "bfloat16, eager"

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        num_tokens = num_new_tokens + (LEAD_TOKENS if len(prompts) > 1 else 0)
        params = vllm.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True, detokenize=False)
        ids = [str(next(self._request_ids)) for _ in prompts]
        for request_id, prompt in zip(ids, prompts, strict=True):
            self._engine.add_request(request_id, {"prompt_token_ids": list(prompt)}, params)
        counts = dict.fromkeys(ids, 0)

        def step() -> list[int]:
            for output in self._engine.step():
                counts[output.request_id] = len(output.outputs[0].token_ids)
            return list(counts.values())

        stamps = stamp_rounds(step, num_new_tokens)
        self._engine.abort_request(ids)
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return stamps


if __name__ == "__main__":
    run(Program)
