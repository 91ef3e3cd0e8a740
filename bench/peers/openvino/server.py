"""Serves OpenVINO GenAI's pipeline over HTTP for bench.serve_load; runs in the pipeline's own environment.

Run: python -m bench.peers.openvino.server FOLDER --port N [--threads N] [--context-tokens N] [--step-tokens N]
It speaks what the load generator asks: POST /v1/completions with token ids, max_tokens, ignore_eos and stream, always
the likeliest token; GET /health and /v1/models.
"""

from __future__ import annotations

import argparse
import itertools
import os

import numpy as np
import openvino
import openvino_genai as genai

from bench.peers.http_front import Front, Handle, serve

KV_BLOCK_TOKENS = 32  # of the pipeline on processors


class Pipeline:
    """Continuous batching with a prefix cache; keys and values in the type that OpenVINO chooses (u8)."""

    def __init__(self, options: argparse.Namespace) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = options.step_tokens
        scheduler.num_kv_blocks = -(-options.context_tokens // KV_BLOCK_TOKENS)
        scheduler.enable_prefix_caching = True
        properties = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
        self._pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)
        self._numbers = itertools.count()
        self.step = self._pipeline.step

    def add(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Handle:
        config = genai.GenerationConfig()
        config.max_new_tokens = num_new_tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = openvino.Tensor(np.array([prompt_ids], np.int64))
        handle: Handle = self._pipeline.add_request(next(self._numbers), ids, config)
        return handle


def main() -> None:
    """Load, then serve."""
    parser = argparse.ArgumentParser(description="Serve a model by OpenVINO GenAI.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--context-tokens", type=int, default=1 << 16, help="that keys and values are kept of")
    parser.add_argument("--step-tokens", type=int, default=512, help="most rows a step")
    options = parser.parse_args()
    pipeline = Pipeline(options)
    serve(pipeline, Front(options.port, options.model))


if __name__ == "__main__":
    main()
