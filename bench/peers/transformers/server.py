"""Serves a model by PyTorch and transformers over HTTP, one request after the other; runs in an environment of its own.

Run: python -m bench.peers.transformers.server FOLDER --port N [--threads N] [--dtype bfloat16|float32]
This is what a model runs in before anybody optimizes it: eager PyTorch, keys and values kept from token to token,
always the likeliest token. It speaks what bench.peers.http_front takes.
"""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from bench.peers.http_front import Front, Handle, NewTokens, serve


@dataclass(slots=True)
class Generation:
    """One request: the tokens that the model reads next, and what it has read."""

    next_ids: list[int]
    num_left: int
    cache: Any = field(default_factory=DynamicCache)
    unread: list[int] = field(default_factory=list)

    def can_read(self) -> bool:
        return bool(self.unread)

    def read(self) -> Mapping[int, Any]:
        found, self.unread = self.unread, []
        return {0: NewTokens(found)}

    def cancel(self) -> None:
        self.num_left = 0


class Pipeline:
    """Requests in the order in which they came, each to its end before the next."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.set_num_threads(options.threads)
        dtype = getattr(torch, options.dtype)
        self._model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype, local_files_only=True).eval()
        self._waiting: deque[Generation] = deque()

    def add(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> Handle:
        generation = Generation(list(prompt_ids), num_new_tokens)
        self._waiting.append(generation)
        return generation

    @torch.inference_mode()
    def step(self) -> None:
        while self._waiting and self._waiting[0].num_left == 0:
            self._waiting.popleft()
        if not self._waiting:
            return
        current = self._waiting[0]
        ids = torch.tensor([current.next_ids])
        output = self._model(input_ids=ids, past_key_values=current.cache, use_cache=True, logits_to_keep=1)
        token_id = int(output.logits[0, -1].argmax())
        current.next_ids = [token_id]
        current.unread.append(token_id)
        current.num_left -= 1


def main() -> None:
    """Load, then serve."""
    parser = argparse.ArgumentParser(description="Serve a model by PyTorch and transformers.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    options = parser.parse_args()
    pipeline = Pipeline(options)
    serve(pipeline, Front(options.port, options.model))


if __name__ == "__main__":
    main()
