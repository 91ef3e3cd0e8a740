"""Times generations of eager PyTorch with transformers; runs in its own environment.

Run: python -m bench.peers.transformers.generation FOLDER PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES] [--dtype TYPE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from bench.timing import Workload, run


class Program:
    """A model as it is before anybody optimizes it; all prompts are one batch."""

    def __init__(self, options: argparse.Namespace, _workload: Workload) -> None:
        torch.set_num_threads(options.threads)
        dtype = getattr(torch, options.dtype or "bfloat16")
        self._model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, local_files_only=True).eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.system_info = f"{dtype}, eager, {options.threads} threads"

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        ids, cache, stamps = torch.tensor([list(prompt) for prompt in prompts]), DynamicCache(), []
        for _ in range(num_new_tokens):
            output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            ids = output.logits[:, -1].argmax(-1, keepdim=True)
            stamps.append(time.perf_counter())
        return stamps


if __name__ == "__main__":
    run(Program, ("--dtype", {"help": "bfloat16 or float32; left out, bfloat16"}))
