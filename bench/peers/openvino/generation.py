"""Times generations of OpenVINO GenAI, by its pipeline with continuous batching; runs in its own environment.

Run: python -m bench.peers.openvino.generation FOLDER PROMPT_TOKENS NEW_TOKENS [THREADS] [SEQUENCES]
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai as genai

from bench.timing import LEAD_TOKENS, Workload, run, stamp_rounds


class Program:
    """A pipeline whose memory for keys and values grows as it needs it, in the type that OpenVINO chooses (u8)."""

    def __init__(self, options: argparse.Namespace, workload: Workload) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = options.step_tokens
        scheduler.max_num_seqs = max(256, workload.num_sequences)
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)
        self._request_ids = itertools.count()
        self.version = f"openvino-genai {genai.__version__}"
        core = openvino.Core()
        self.system_info = (
            f"{core.get_property('CPU', 'FULL_DEVICE_NAME')}, {core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')}"
        )

    def generate(self, prompts: Sequence[Sequence[int]], num_new_tokens: int) -> list[float]:
        config = genai.GenerationConfig()
        config.max_new_tokens = num_new_tokens + (LEAD_TOKENS if len(prompts) > 1 else 0)
        config.ignore_eos = True
        config.do_sample = False
        handles = [
            self._pipeline.add_request(next(self._request_ids), openvino.Tensor(np.array([prompt], np.int64)), config)
            for prompt in prompts
        ]
        counts = [0] * len(handles)

        def step() -> list[int]:
            self._pipeline.step()
            for i, handle in enumerate(handles):
                while handle.can_read():
                    counts[i] += sum(len(output.generated_ids) for output in handle.read().values())
            return counts

        stamps = stamp_rounds(step, num_new_tokens)
        for handle in handles:
            handle.stop()
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        return stamps


if __name__ == "__main__":
    run(Program, ("--step-tokens", {"type": int, "default": 2048, "help": "most rows a step"}))
