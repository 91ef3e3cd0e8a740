"""Times generations of CTranslate2; runs in its own environment.

Run: python -m bench.peers.ctranslate2.generation FOLDER PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import ctranslate2

from bench.timing import Workload, run


class Program:
    """A generator with weights and activations in int8; it takes tokens by their texts."""

    def __init__(self, options: argparse.Namespace, _workload: Workload) -> None:
        self._generator = ctranslate2.Generator(
            options.model, device="cpu", compute_type="int8", inter_threads=1, intra_threads=options.threads
        )
        self._texts = json.loads((Path(options.model) / "vocabulary.json").read_text(encoding="utf-8"))
        self.version = f"ctranslate2 {ctranslate2.__version__}"
        self.system_info = f"compute type {self._generator.compute_type}"

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        """All prompts are one batch, so all sequences are at the same token."""
        stamps = [0.0] * num_new_tokens

        def note(result: ctranslate2.GenerationStepResult) -> bool:
            stamps[result.step] = time.perf_counter()
            return False

        self._generator.generate_batch(
            [[self._texts[token_id] for token_id in prompt] for prompt in prompts],
            max_length=num_new_tokens,
            min_length=num_new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=note,
        )
        assert all(stamps), "every token was reported"
        return stamps


if __name__ == "__main__":
    run(Program)
